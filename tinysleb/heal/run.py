"""From a plan to a healed model: texts, the choice of blocks, the walk, and what it did to each text."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.compute.compute import Compute, Progress, Say, compute_on
from tinysleb.compute.device import dtype_name
from tinysleb.compute.memory import give_back_freed
from tinysleb.errors import TinyslebError
from tinysleb.heal.choosing import choose_how_many, choose_runs
from tinysleb.heal.course import Limits
from tinysleb.heal.distill import plan_distilling_memory
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.heal.lessons import Lessons
from tinysleb.heal.prompts import check_prompts
from tinysleb.heal.repair import Distilling, Repair
from tinysleb.heal.rounding_walk import Wanted, plan_rounding_memory
from tinysleb.heal.text import (
    HealingText,
    Source,
    least_bytes,
    self_source,
    split_windows,
    text_sources,
    window_length,
)
from tinysleb.heal.walk import RIDGE, STEP, HealedMatrix, check_healable, plan_healing_memory
from tinysleb.plan import SELF_SOURCE, Plan, perplexity
from tinysleb.search.evaluate import window_losses
from tinysleb.search.nearness import ask

Types = Callable[[ModelConfig], Wanted]
HEAL_TOKENS = 32768


@dataclass(frozen=True)
class Outcome:
    """Mean losses on windows of one source that were not fitted: original, shortened and healed model."""

    source: str
    original: float
    shortened: float
    healed: float

    @property
    def closed(self) -> float:
        """The fraction of what shortening added to the perplexity that healing took away again.

        Negative if healing harmed; 0 if shortening added nothing.
        """
        original, shortened, healed = map(perplexity, (self.original, self.shortened, self.healed))
        return (shortened - healed) / (shortened - original) if shortened > original else 0.0


@dataclass(frozen=True)
class PreparedHealing:
    """What healing will be fitted to, as far as it is known before the slow work: the texts' windows; whether
    distillation follows, or why it does not; and the types, by the shortened model's shape, to store all
    matrices in, if not their own."""

    text: HealingText
    sources: tuple[Source, ...]
    distilling: Distilling | None = None
    undistilled: str = ""
    types: Types | None = None


def heal(
    weights: Checkpoint,
    plan: Plan,
    texts: Sequence[Path] = (),
    *,
    tokens: int = HEAL_TOKENS,
    self_tokens: int | None = None,
    distill_tokens: int = 0,
    seed: int = 0,
    compute: Compute | None = None,
    say: Say = lambda _line: None,
    progress: Progress = lambda _what, _done: None,
) -> tuple[Weights, Plan]:
    """The model shortened by `plan` and healed, and the plan with what healing did.

    `tokens` to heal on, `self_tokens` of them (half by default) sampled from the model itself, the others
    from text files, or the default text; then distilled on `distill_tokens`. Healed tensors are kept in
    temporary files as long as the model is.
    Raises TinyslebError if the model cannot be healed, or there is too little text or memory.
    """
    compute = compute or compute_on()
    sampled = tokens // 2 if self_tokens is None else self_tokens
    text = HealingText([Path(path) for path in texts], None, tokens, sampled, seed)
    distilling = Distilling(Limits(distill_tokens)) if distill_tokens else None
    prepared = prepare_healing(weights, text, compute, distilling)
    tensors = HealedTensors(Path(tempfile.mkdtemp(prefix="tinysleb-")))
    weakref.finalize(tensors, shutil.rmtree, tensors.folder, ignore_errors=True)
    plan = heal_plan(weights, plan, prepared, compute, tensors, say=say, progress=progress)
    return Healed(Shortened(weights, plan.kept), tensors), plan


def prepare_healing(
    weights: Checkpoint,
    text: HealingText,
    compute: Compute,
    distilling: Distilling | None = None,
    types: Types | None = None,
) -> PreparedHealing:
    """Read the texts, and check all that can be checked before the slow work.

    Raises TinyslebError if the model cannot be healed, or there is too little text or memory.
    """
    length = window_length(weights, text)
    if distilling is None:
        check_healable(weights.config, weights)
    else:
        plan_distilling_memory(weights.config, weights.config.blocks, length, compute)
    shape = max(2, text.tokens // length), length
    plan_healing_memory(weights.config, shape, compute)
    if distilling is not None or types is not None:
        plan_rounding_memory(weights.config, shape, compute)
    sources: tuple[Source, ...] = ()
    if text.tokens > text.sampled:
        sources = tuple(text_sources(weights, text))
        split_windows(torch.cat([source.fit for source in sources]))
    elif text.tokens < 2 * length:
        raise TinyslebError(
            f"healing needs two windows of {length} tokens, and is to use {text.tokens} tokens",
            "raise --heal-tokens",
        )
    if not sources:
        check_prompts(weights)
    return PreparedHealing(text, sources, distilling, types=types)


def heal_plan(
    weights: Checkpoint,
    plan: Plan,
    prepared: PreparedHealing,
    compute: Compute,
    healed: HealedTensors,
    *,
    runs_among: range | None = None,
    by_quality: bool = False,
    say: Say,
    progress: Progress,
) -> Plan:
    """Heal `weights` shortened by `plan`, keeping tensors in `healed`; the plan with what healing did.

    `runs_among`: blocks whose runs of neighbours compete with the plan's blocks, judged after healing.
    `by_quality`: make only as many of the plan's cuts as the healed model bears. Raises TinyslebError as
    healing and choosing do.
    """
    sources = _gather_sources(weights, prepared, compute, say, progress)
    compared: dict[str, Any] = {}
    if runs_among is not None:
        plan, finalists = choose_runs(
            weights, plan, runs_among, sources, compute, healed.folder, say, progress
        )
        compared = {"compared": finalists}
    if by_quality:
        plan, points = choose_how_many(weights, plan, sources, compute, healed.folder, say, progress)
        compared = {"by_quality": points}
    report = _heal_and_judge(weights, plan, prepared, sources, compute, healed, say, progress)
    text = {"seed": prepared.text.seed, "ridge": RIDGE, "step": STEP}
    return replace(plan, healing=text | _provenance(sources, compute) | report | compared)


def _gather_sources(
    weights: Checkpoint, prepared: PreparedHealing, compute: Compute, say: Say, progress: Progress
) -> list[Source]:
    """The texts, and what the model writes itself if it can; if not, `say` says why."""
    sources, text = list(prepared.sources), prepared.text
    if not text.sampled:
        return sources
    try:
        if text.token_file is not None:
            raise TinyslebError("windows come from a file of tokens")
        sources.append(self_source(weights, text, compute, say, partial(progress, "sampling text")))
    except TinyslebError as error:
        if not sources:
            raise
        say(f"no text is sampled from the model: {error.one_line}")
    return sources


def _heal_and_judge(
    weights: Checkpoint,
    plan: Plan,
    prepared: PreparedHealing,
    sources: Sequence[Source],
    compute: Compute,
    healed: HealedTensors,
    say: Say,
    progress: Progress,
) -> dict[str, Any]:
    """Heal, distil if that was asked for, and measure what it did to windows that were held back."""
    if prepared.undistilled:
        say(f"not distilled: {prepared.undistilled}")
    fit, check = split_windows(torch.cat([source.fit for source in sources]))
    _announce(weights, fit, check, compute, say)
    shortened = Shortened(weights, plan.kept)
    measuring = partial(progress, "measuring")
    judge = partial(_losses, sources=sources, compute=compute, progress=measuring)
    before = judge(shortened)
    give_back_freed()
    identity = " ".join([*map(str, plan.removed), *(source.sha256 for source in sources)])
    types = None if prepared.types is None else prepared.types(shortened.config)
    repair = Repair(weights, plan, fit, check, prepared.text.seed, identity, compute, say, progress, types)
    report: dict[str, Any] = {"window_length": fit.shape[1]}
    if prepared.distilling is None:
        matrices = repair.solve(healed)
    else:
        lessons = _lessons(weights, prepared, sources, compute, say)
        matrices, report["distilled"] = repair.solve_and_distil(prepared.distilling, lessons, healed, judge)
    report["blocks"] = [asdict(matrix) for matrix in matrices]
    model = Healed(shortened, healed)
    yardstick = ask(weights, _held_back(sources), compute, measuring)
    original = _means(weights, yardstick.losses, sources)
    kept, losses = yardstick.measure(model, compute, measuring)
    after = _means(model, losses, sources)
    outcomes = list(map(Outcome, (source.name for source in sources), original, before, after))
    for line in (*_outcome_lines(outcomes), *_worse_lines(outcomes, report)):
        say(line)
    report["kept"] = {"mean_kld": kept.mean_kld, "same_top": kept.same_top}
    if prepared.distilling is None and types is None:
        say(_solved_line(matrices))
    return report | {"sources": [_source_report(*pair) for pair in zip(sources, outcomes, strict=True)]}


def _announce(weights: Checkpoint, fit: Tensor, check: Tensor, compute: Compute, say: Say) -> None:
    memory = plan_healing_memory(weights.config, (len(fit) + len(check), fit.shape[1]), compute)
    say(f"healing on {fit.numel()} tokens")
    if not memory.streams:
        say("healing: hidden states go into temporary files, since they do not fit into memory")
    if not memory.direct:
        say("healing: equations too wide for float64 in this memory are solved in float32, and refined")
    if fit.numel() < weights.config.intermediate:
        say(
            f"warning: healing on {fit.numel()} tokens, fewer than the {weights.config.intermediate} inputs "
            "it has to weigh; give more text"
        )


def _lessons(
    weights: Checkpoint, prepared: PreparedHealing, sources: Sequence[Source], compute: Compute, say: Say
) -> Lessons:
    """What to distil on: the same kinds of text, if the original can write any meanwhile."""
    text, given = prepared.text, bool(prepared.sources)
    sampled = any(source.name == SELF_SOURCE for source in sources)
    if sampled and given:
        length, blocks = window_length(weights, text), weights.config.blocks
        writing = least_bytes(weights, text, compute.dtype.itemsize)
        try:
            plan_distilling_memory(weights.config, blocks, length, compute, writing)
        except TinyslebError as error:
            say(f"no text is sampled while distilling: {error.one_line}")
            sampled = False
    return Lessons(weights, text, compute, say, given=given, sampled=sampled)


def _losses(
    weights: Weights, sources: Sequence[Source], compute: Compute, progress: Callable[[float], None]
) -> list[float]:
    losses = window_losses(weights, _held_back(sources), compute, progress)
    return _means(weights, losses, sources)


def _held_back(sources: Sequence[Source]) -> Tensor:
    return torch.cat([source.held_back for source in sources])


def _means(weights: Weights, losses: Tensor, sources: Sequence[Source]) -> list[float]:
    """The mean of each source, of losses `[n, T - 1]` of what was held back of all of them.

    Raises TinyslebError for a perplexity that is not a finite number, naming the tensor that is damaged.
    """
    parts = torch.split(losses, [len(source.held_back) for source in sources])
    means = [part.double().mean().item() for part in parts]
    if not all(math.isfinite(perplexity(mean)) for mean in means):
        raise not_finite(weights, "the perplexity")
    return means


def _outcome_lines(outcomes: list[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        losses = (outcome.original, outcome.shortened, outcome.healed)
        original, shortened, healed = map(perplexity, losses)
        won = f"; {outcome.closed:.0%} won back" if shortened > original else ""
        yield (
            f"healed on {outcome.source}: perplexity {original:.2f} original, {shortened:.2f} shortened, "
            f"{healed:.2f} healed{won}"
        )
        if healed > shortened:
            yield f"warning: on {outcome.source}, the healed model is worse than the shortened one"


def _worse_lines(outcomes: Sequence[Outcome], report: Mapping[str, Any]) -> Iterator[str]:
    """What distillation made worse than the closed form had left it, as on too few tokens for the model."""
    for outcome, solved in zip(outcomes, report.get("distilled", {}).get("solved", ()), strict=False):
        if outcome.healed > solved:
            yield (
                f"warning: on {outcome.source}, the closed form alone left perplexity "
                f"{perplexity(solved):.2f}: distil on more (--distill-tokens, --minutes), or not at all "
                "(--heal solve)"
            )


def _solved_line(matrices: list[HealedMatrix]) -> str:
    if not any(each.healed for each in matrices):
        return "no block came nearer to the original model, and all keep their weights; more text may help"
    types = sorted({each.type for each in matrices if each.healed})
    lost = sum(each.stored - each.after for each in matrices) / max(sum(m.after for m in matrices), 1e-30)
    return (
        f"{sum(each.healed for each in matrices)} of {len(matrices)} matrices above the first gap healed, "
        f"stored as {', '.join(types)}, which adds {lost:.2%} to their error"
    )


def _provenance(sources: Sequence[Source], compute: Compute) -> dict[str, Any]:
    """How healing was computed, and on how many tokens in all and from the model itself."""
    tokens = {source.name: source.fit.numel() for source in sources}
    return {
        "dtype": dtype_name(compute.dtype),
        "device": compute.device.type,
        "tokens": sum(tokens.values()),
        "self_tokens": tokens.get(SELF_SOURCE, 0),
    }


def _source_report(source: Source, outcome: Outcome) -> dict[str, Any]:
    fitted = {"tokens": source.fit.numel(), "text_sha256": source.sha256}
    return {**asdict(outcome), "closed": outcome.closed, **fitted}
