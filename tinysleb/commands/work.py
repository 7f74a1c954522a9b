"""How much work a job is, stage by stage: for the time that is left, and for what is said beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.commands.console import Work
from tinysleb.compute.compute import Progress
from tinysleb.heal.course import Limits
from tinysleb.heal.repair import STEPS_PART
from tinysleb.heal.run import PreparedHealing
from tinysleb.heal.text import HELD_BACK, LIBRARY, HealingText
from tinysleb.plan import PERPLEXITY
from tinysleb.search.cuts import ANY, HALF
from tinysleb.search.estimate import block_operations, head_operations
from tinysleb.search.metrics import METRICS
from tinysleb.search.pace import Pace
from tinysleb.search.run import SearchRequest
from tinysleb.search.stopping import StoppingRule
from tinysleb.text.windows import Calibration

RACING, SAMPLING, HEALING, DISTILLING = 0.35, 1.0, 2.0, 3.0
"""What a token costs at each block in a search, sampling, healing and distilling, in block passes, about."""
ONCE = 3
"""Walks of the model where cuts are scored once: over what it says, its states, and what is left of it."""
SOURCES = 2 + len(LIBRARY)
"""Kinds of text that are healed on, by default: also the documentation, and what the model writes."""
USUAL_PART, USUAL_TRIES = 0.2, 3
"""Where the model says how much goes: part of the blocks until no more need be tried, and healed models."""


@dataclass(frozen=True)
class Stage:
    """Tokens that pass a block, and those that pass the head, about; `limit`: seconds after which it ends."""

    blocks: float
    heads: float
    limit: float = float("inf")


def job_stages(
    config: ModelConfig,
    calibration: Calibration,
    request: SearchRequest,
    prepared: PreparedHealing | str,
    own: HealingText | None = None,
) -> list[Stage]:
    """What the model writes for it, if it does; a search; and the healing that was prepared, if any was."""
    rule, tokens = request.rule, calibration.tokens.numel()
    stages = [] if own is None else [sampling_stage(config, own)]
    if request.metric == PERPLEXITY:
        refined = request.refine and calibration.others is not None
        cuts, racing = usual_cuts(config, rule), not request.exact
        stages += search_stages(config, tokens, cuts, request.kind, refined, racing)
    else:
        stages.append(metric_stage(config, tokens, request))
    if not isinstance(prepared, PreparedHealing):
        return stages
    healing = prepared_stages(config, prepared)
    sampling = [healing.pop(0)] if prepared.text.sampled else []
    if own is None:
        stages += sampling
    if rule.by_quality:
        stages.append(Stage(USUAL_TRIES * HEALING * prepared.text.tokens * config.blocks, 0))
    return stages + healing


def usual_cuts(config: ModelConfig, rule: StoppingRule) -> int:
    """How many cuts a search is likely to make."""
    return min(rule.most, max(1, round(USUAL_PART * config.blocks))) if rule.by_quality else rule.most


def search_progress(progress: Progress, config: ModelConfig, rule: StoppingRule) -> Progress:
    """Reports how much is done of what a search is likely to do, where it is told the part of all cuts that
    are allowed."""
    share = rule.most / usual_cuts(config, rule)
    return lambda what, done: progress(what, min(done * share, 1.0))


def search_stages(
    config: ModelConfig, tokens: int, cuts: int, kind: str, refined: bool, racing: bool = True
) -> list[Stage]:
    """A search on so many tokens until so many cuts are made, n candidates being n²/2 passes of the stack;
    and as much again to refine it."""
    rounds = range(config.blocks, max(config.blocks - cuts, 1), -1)
    share = (RACING if racing else 1) * tokens * (2 if kind in (HALF, ANY) else 1)
    stage = Stage(share * sum(count**2 / 2 for count in rounds), share * sum(rounds))
    return [stage, stage] if refined else [stage]


def metric_stage(config: ModelConfig, tokens: int, request: SearchRequest) -> Stage:
    """What a metric needs that gives each cut its value once; and the loss before and after the cuts."""
    stage = Stage(ONCE * tokens * config.blocks, ONCE * tokens)
    if not METRICS[request.metric].by_round:
        return stage
    (scoring,) = search_stages(config, tokens, 1, request.kind, refined=False, racing=False)
    return Stage(stage.blocks + scoring.blocks, stage.heads + scoring.heads)


def sampling_stage(config: ModelConfig, text: HealingText) -> Stage:
    """What the model writes for a text."""
    return Stage(SAMPLING * text.sampled * config.blocks, SAMPLING * text.sampled)


def healing_stages(config: ModelConfig, text: HealingText, limits: Limits | None) -> list[Stage]:
    """Sampling if any text is sampled, the closed form, and distillation if that has limits; and what is
    measured before, between and behind."""
    blocks, held_back = config.blocks, SOURCES * HELD_BACK * text.length
    solving, measuring = Stage(HEALING * text.tokens * blocks, 0), Stage(held_back * blocks, held_back)
    stages = [sampling_stage(config, text)] if text.sampled else []
    stages += [measuring, solving]
    if limits is not None:
        tokens = DISTILLING * limits.tokens
        stages += [measuring]
        for part in (1 - STEPS_PART, STEPS_PART):
            stages += [Stage(part * tokens * blocks, part * tokens, part * limits.seconds), solving]
        stages.pop()
    return [*stages, measuring, measuring]


def prepared_stages(config: ModelConfig, prepared: PreparedHealing) -> list[Stage]:
    """Healing alone, as it was prepared."""
    limits = None if prepared.distilling is None else prepared.distilling.limits
    return healing_stages(config, prepared.text, limits)


def console_works(stages: Sequence[Stage], config: ModelConfig) -> list[Work]:
    """The same for a console: in block passes of a token."""
    head = head_operations(config) / block_operations(config)
    return [Work(stage.blocks + head * stage.heads, stage.limit) for stage in stages]


def seconds_of(stages: Sequence[Stage], pace: Pace) -> float:
    """How long stages take at a pace."""
    return sum(min(stage.limit, stage.blocks * pace.block + stage.heads * pace.head) for stage in stages)
