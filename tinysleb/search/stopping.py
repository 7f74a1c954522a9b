"""When a search has removed enough: the rules a user can choose from, and why each one ended."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tinysleb.checkpoint.config import ModelConfig, block_parameter_count
from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.weights import Shortened, Weights, total_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.model_files import model_files
from tinysleb.formats.units import format_bytes, parse_bytes
from tinysleb.plan import Plan, perplexity, plan_to_json

HEADER_BYTES_PER_TENSOR = 200
HEALING_BYTES_PER_BLOCK = 300
"""What a plan says of a healed block."""
PLAN_BYTES_MORE = 8192
"""Of the plan's times, its reason, and the model card's own text."""


@dataclass(frozen=True)
class StoppingRule:
    """`name`: as the user wrote it. `most`: blocks removed at most.

    `increase`: the most that perplexity may grow, as a part of what it was. `output_bytes`: what the output
    may have at most.
    """

    name: str
    most: int
    increase: float | None = None
    output_bytes: int | None = None

    @property
    def by_count_alone(self) -> bool:
        """Whether `most` is exactly how many blocks go."""
        return self.increase is None and self.output_bytes is None


def by_count(count: int) -> StoppingRule:
    """Exactly so many blocks."""
    return StoppingRule(f"--remove {count}", count)


def by_ratio(ratio: float, config: ModelConfig) -> StoppingRule:
    """A part of all blocks, rounded. Raises TinyslebError if that is none."""
    count = round(ratio * config.blocks) if ratio > 0 else 0
    if count < 1:
        raise TinyslebError(f"--ratio {ratio} of {config.blocks} blocks is none", "give a larger ratio")
    return StoppingRule(f"--ratio {ratio:g}", count)


def by_speedup(factor: float, config: ModelConfig, removable: int) -> StoppingRule:
    """The fewest blocks by which the work for one token falls `factor` times.

    The work is counted in weights that multiply: those of the blocks and of the head, not the embedding's.
    Raises TinyslebError if all that may go are too few.
    """
    if not 1 < factor < math.inf:
        raise TinyslebError(f"--speedup {factor} is no factor above 1", "write it as 1.25")
    block, head = block_parameter_count(config), config.vocab_size * config.width
    whole = config.blocks * block + head
    count = max(1, math.ceil((whole - whole / factor) / block - 1e-9))
    if count > removable:
        reachable = whole / (whole - removable * block)
        raise TinyslebError(
            f"--speedup {factor:g} cannot be reached: without all {removable} blocks that may go, the model "
            f"does {reachable:.2f} times less work",
            "give a lower --speedup, or lower --keep-first and --keep-last",
        )
    return StoppingRule(f"--speedup {factor:g}", count)


def by_perplexity(text: str, removable: int) -> StoppingRule:
    """As long as perplexity on the calibration windows grows by no more than `text`, such as `15%`."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*", text)
    if match is None:
        raise TinyslebError(f"--max-perplexity-increase {text!r} is no percentage", "write it as 15%")
    return StoppingRule(f"--max-perplexity-increase {text}", removable, increase=float(match[1]) / 100)


def by_size(text: str, weights: Weights, removable: range) -> StoppingRule:
    """Until the output has no more than `text` bytes, such as `3GiB`.

    Raises TinyslebError if it has no more than that uncut, or more with all removable blocks gone.
    """
    limit, blocks = parse_bytes(text), range(weights.config.blocks)
    whole, least = (
        _output_bytes(weights, Plan(len(blocks), 0, {}), tuple(kept))
        for kept in (blocks, [i for i in blocks if i not in removable] or blocks[:1])
    )
    if whole <= limit:
        raise TinyslebError(
            f"{weights.path} takes {format_bytes(whole)} uncut, which is within --fit {text}",
            "give a lower --fit, or say how many blocks to leave out with --remove",
        )
    if least > limit:
        raise TinyslebError(
            f"--fit {text} cannot be reached: without all blocks that may go, the output takes "
            f"{format_bytes(least)}",
            "give a higher --fit, or lower --keep-first and --keep-last",
        )
    return StoppingRule(f"--fit {text}", len(removable), output_bytes=limit)


def ended(rule: StoppingRule, plan: Plan, weights: Weights) -> Plan | None:
    """The plan up to where the rule ends it, with the reason; None if it does not end it yet.

    A round that leads beyond the allowed perplexity is not part of the result. Raises TinyslebError if
    that is the first, or if the plan does not know the perplexities that the rule asks for.
    """
    for count in range(1, len(plan.rounds) + 1):
        shorter = replace(plan, target=count, rounds=plan.rounds[:count])
        if rule.increase is not None and (growth := _growth(shorter, rule)) > rule.increase:
            return _before_last(shorter, rule, growth)
        if rule.output_bytes is not None:
            size = _output_bytes(weights, shorter, shorter.kept)
            if size <= rule.output_bytes:
                return replace(shorter, stopped=f"{rule.name}: the output takes {format_bytes(size)}")
        if count == rule.most:
            return replace(shorter, stopped=f"{rule.name}: {count} of {plan.blocks} blocks removed")
    return None


def _growth(plan: Plan, rule: StoppingRule) -> float:
    """By which part the last round's perplexity exceeds the uncut model's."""
    if plan.loss is None or math.isnan(plan.rounds[-1].loss):
        raise TinyslebError(f"{rule.name}: the plan does not say which perplexity its rounds lead to")
    return perplexity(plan.rounds[-1].loss) / perplexity(plan.loss) - 1


def _before_last(plan: Plan, rule: StoppingRule, growth: float) -> Plan:
    *rounds, last = plan.rounds
    if not rounds:
        raise TinyslebError(
            f"{rule.name} allows no removal: without block {last.removed}, the cheapest, perplexity is "
            f"{growth:.1%} higher",
            "allow more; with --resume, the round that was made is not made again",
        )
    reason = f"{rule.name}: without block {last.removed} too, perplexity would be {growth:.1%} higher"
    return replace(plan, target=len(rounds), rounds=tuple(rounds), stopped=reason)


def _output_bytes(weights: Weights, plan: Plan, kept: tuple[int, ...]) -> int:
    """What the output takes on disk with only the blocks `kept`, all of its files; at most some kB less."""
    shorter = Shortened(weights, kept)
    tensors = len(shorter.tensors)
    if isinstance(weights, GgufWeights):
        around = weights.file.header_bytes + weights.file.alignment * tensors
    else:
        around = HEADER_BYTES_PER_TENSOR * tensors + _files_beside(weights.path)
    text = json.dumps(plan_to_json(plan), indent=1)
    healing = HEALING_BYTES_PER_BLOCK * len(kept)
    return around + total_bytes(shorter) + len(text) + healing + PLAN_BYTES_MORE


def _files_beside(path: Path) -> int:
    """The bytes of what is copied besides the weights."""
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in model_files(folder))
