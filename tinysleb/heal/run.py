"""From a plan to a healed model: texts, memory, the walk, and what it did to each kind of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.compute.compute import Compute, Progress
from tinysleb.compute.memory import give_back_freed
from tinysleb.errors import TinyslebError
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.heal.text import HealingText, Source, self_source, text_sources, window_length
from tinysleb.heal.walk import RIDGE, STEP, HealedBlock, check_healable, heal, plan_healing_memory
from tinysleb.plan import Plan, perplexity
from tinysleb.search.evaluate import evaluate

CHECKED = 8
"""One window in so many decides whether a block is better off with its old weights."""


@dataclass(frozen=True)
class Outcome:
    """Mean losses on windows of one source that were not fitted: whole, shortened and healed model."""

    source: str
    dense: float
    shortened: float
    healed: float

    @property
    def closed(self) -> float:
        """The part of what shortening cost, in perplexity, that healing won back; negative if it harmed."""
        dense, shortened, healed = map(perplexity, (self.dense, self.shortened, self.healed))
        return (shortened - healed) / (shortened - dense) if shortened != dense else 0.0


def check_text(weights: Weights, text: HealingText) -> None:
    """Before any slow work: raise TinyslebError if a model cannot be healed, or there is too little text."""
    check_healable(weights.config, weights)
    length = window_length(weights, text)
    if text.tokens > text.sampled:
        divided(torch.cat([source.fit for source in text_sources(weights, text)]))
    elif text.tokens < 2 * length:
        raise TinyslebError(f"healing needs two windows of {length} tokens, --heal-tokens is {text.tokens}")


def check_memory(weights: Weights, text: HealingText, compute: Compute) -> None:
    """Before any slow work: raise TinyslebError if a model cannot be healed within the memory."""
    length = window_length(weights, text)
    plan_healing_memory(weights.config, (max(2, text.tokens // length), length), compute)


def run_healing(
    weights: Weights,
    plan: Plan,
    sources: Sequence[Source],
    seed: int,
    compute: Compute,
    healed: HealedTensors,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Heal `weights` shortened by `plan` on `sources`, which `seed` chose, keeping tensors in `healed`.

    Returns what the plan is to say of it. Raises TinyslebError as `heal` does.
    """
    fit, check = divided(torch.cat([source.fit for source in sources]))
    shape = (len(fit) + len(check), fit.shape[1])
    memory = plan_healing_memory(weights.config, shape, compute)
    if not memory.streams:
        say("healing: hidden states go into files beside the output, since --memory does not hold them")
    if not memory.direct:
        say("healing: equations too wide for float64 within --memory are solved in float32, and refined")
    if fit.numel() < weights.config.intermediate:
        say(
            f"warning: healing on {fit.numel()} tokens, fewer than the {weights.config.intermediate} inputs "
            "it has to weigh; give more text"
        )
    shortened = Shortened(weights, plan.kept)
    model = Healed(shortened, healed)
    before = [_loss(each, source, compute) for source in sources for each in (weights, shortened)]
    give_back_freed()
    blocks = heal(weights, plan.kept, fit, check, compute, healed, partial(progress, "healing"))
    outcomes = [
        Outcome(source.name, before[2 * i], before[2 * i + 1], _loss(model, source, compute))
        for i, source in enumerate(sources)
    ]
    for line in _summary(blocks, outcomes):
        say(line)
    return _report(seed, sources, outcomes, blocks)


def gathered(
    weights: Weights, text: HealingText, compute: Compute, say: Callable[[str], None], progress: Progress
) -> Iterator[Source]:
    """The sources to heal on: texts, and what the model writes itself if it can; if not, `say` says why.

    Raises TinyslebError if there is no text.
    """
    if text.tokens > text.sampled:
        yield from text_sources(weights, text)
    if not text.sampled:
        return
    try:
        if text.token_file is not None:
            raise TinyslebError("windows come from a file of tokens")
        yield self_source(weights, text, compute, partial(progress, "sampling text"))
    except TinyslebError as error:
        if text.tokens <= text.sampled:
            raise
        say(f"no text is sampled from the model: {error.in_a_line}")


def divided(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows `[n, T]` to fit, and those of them that check the result, taken evenly."""
    checked = torch.arange(len(windows)) % CHECKED == CHECKED - 1
    if not checked.any():
        checked[-1] = True
    if checked.all():
        raise TinyslebError("healing needs at least two windows of text", "give more text")
    return windows[~checked], windows[checked]


def _loss(weights: Weights, source: Source, compute: Compute) -> float:
    return evaluate(weights, source.held_back, compute, lambda _part: None).loss


def _summary(blocks: list[HealedBlock], outcomes: list[Outcome]) -> Iterator[str]:
    for result in outcomes:
        dense, shortened, healed = map(perplexity, (result.dense, result.shortened, result.healed))
        yield (
            f"healed on {result.source}: perplexity {dense:.2f} whole, {shortened:.2f} shortened, "
            f"{healed:.2f} healed; {result.closed:.0%} won back"
        )
        if healed > shortened:
            yield f"warning: on {result.source}, the healed model is worse than the shortened one"
    if not any(block.healed for block in blocks):
        yield "no block came nearer to the whole model, and all keep their weights; more text may help"
        return
    recoded = sorted({block.type for block in blocks if block.healed})
    lost = sum(block.stored - block.after for block in blocks) / max(sum(b.after for b in blocks), 1e-30)
    yield (
        f"{sum(block.healed for block in blocks)} of {len(blocks)} blocks above the first gap healed, stored "
        f"as {', '.join(recoded)}, which adds {lost:.2%} to their error"
    )


def _report(
    seed: int, sources: Sequence[Source], outcomes: list[Outcome], blocks: list[HealedBlock]
) -> dict[str, Any]:
    fitted = [
        {
            **asdict(outcome),
            "closed": outcome.closed,
            "tokens": source.fit.numel(),
            "text_sha256": source.sha256,
        }
        for source, outcome in zip(sources, outcomes, strict=True)
    ]
    return {
        "ridge": RIDGE,
        "step": STEP,
        "seed": seed,
        "window_length": sources[0].fit.shape[1],
        "sources": fitted,
        "blocks": [asdict(block) for block in blocks],
    }
