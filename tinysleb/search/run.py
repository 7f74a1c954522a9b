"""From what a user asks for to a finished plan: calibrate, choose device and precision, search, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tinysleb import __version__
from tinysleb.checkpoint.fingerprint import fingerprint
from tinysleb.checkpoint.weights import Shortened, Weights, total_bytes
from tinysleb.compute.compute import Compute, Progress, compute_on
from tinysleb.compute.device import choose_device, choose_dtype, dtype_name
from tinysleb.compute.distributed import Group, local_rank
from tinysleb.compute.memory import describe_memory
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import write_json
from tinysleb.plan import PERPLEXITY, Plan, Round, perplexity, plan_from_json, plan_to_json, read_plan
from tinysleb.search.evaluate import evaluate
from tinysleb.search.metrics import best_run, check_metric, score_blocks
from tinysleb.search.rounds import check_target, removable, search, sweeps_in_a_round
from tinysleb.search.stopping import StoppingRule, ended
from tinysleb.text.windows import Calibration, Windows, calibrate


@dataclass(frozen=True)
class SearchRequest:
    """What a search is asked to do. `unfinished` is where its state is kept."""

    rule: StoppingRule
    metric: str
    windows: Windows
    seed: int
    keep_first: int
    keep_last: int
    exact: bool
    device: str
    dtype: str
    memory: str
    unfinished: Path
    resume: bool
    force: bool


def run_search(
    weights: Weights,
    request: SearchRequest,
    group: Group,
    say: Callable[[str], None],
    progress: Progress,
) -> Plan:
    """Search, saving the plan after every round; `say` is told what begins and what each round did.

    In a group of processes, the first one saves. Raises TinyslebError if the request cannot be met, before
    any slow work where that can be known.
    """
    blocks, rule = weights.config.blocks, request.rule
    allowed = removable(blocks, request.keep_first, request.keep_last)
    check_target(rule.most, blocks, allowed)
    check_metric(request.metric, rule.by_count_alone)
    found = _saved(request, group)
    if request.resume and found is None:
        say(f"there is no {request.unfinished} to resume: the search begins anew")
    calibration = calibrate(weights, request.windows, request.seed)
    compute = _compute(request, found, group)
    plan = Plan(blocks, rule.most, _settings(weights, calibration, compute, request))
    _check_same_everywhere(plan, group)
    plan = _continued(plan, found, request.unfinished) if found else plan
    for line in _announcement(plan, calibration, rule, compute, weights, len(allowed)):
        say(line)
    every_loss = rule.increase is not None
    rounds = search_by_metric(
        weights, calibration.tokens, plan, compute,
        allowed=allowed, exact=request.exact, every_loss=every_loss, progress=progress,
    )  # fmt: skip
    try:
        while (finished := ended(rule, plan, weights)) is None:
            plan = next(rounds)
            if request.metric == PERPLEXITY and group.rank == 0:
                write_json(request.unfinished, plan_to_json(plan))
            say(_round_line(plan))
    except KeyboardInterrupt:
        if plan.rounds and request.metric == PERPLEXITY:
            say(f"stopped after {len(plan.rounds)} rounds; the same command with --resume continues")
        raise
    return finished


def search_by_metric(
    weights: Weights,
    tokens: Tensor,
    plan: Plan,
    compute: Compute,
    *,
    allowed: range,
    exact: bool,
    every_loss: bool,
    progress: Progress,
) -> Iterator[Plan]:
    """`search` by the metric that `plan.settings` names, yielding the plan after each round.

    Only SLEB knows the loss after every round; for the others the loss is measured without blocks removed
    and with all, or after every round if `every_loss`.
    """
    metric = plan.settings.get("metric", PERPLEXITY)
    if metric == PERPLEXITY:
        yield from search(weights, tokens, plan, compute, allowed=allowed, exact=exact, progress=progress)
        return
    begin = time.monotonic()
    scores = score_blocks(metric, weights, tokens, plan, compute, allowed, progress)
    order = (
        best_run(scores, plan.target) if metric == "cosine" else sorted(scores, key=lambda i: (scores[i], i))
    )

    def loss(kept: Sequence[int]) -> float:
        shorter = Shortened(weights, tuple(kept))
        return evaluate(shorter, tokens, compute, partial(progress, "evaluating")).loss

    plan = replace(plan, scores=scores, loss=loss(range(plan.blocks)))
    for block in order[: plan.target]:
        kept = [index for index in plan.kept if index != block]
        wanted = every_loss or len(plan.rounds) + 1 == plan.target
        round_ = Round(block, loss(kept) if wanted else math.nan, time.monotonic() - begin, {})
        plan = replace(plan, rounds=(*plan.rounds, round_))
        yield plan
        begin = time.monotonic()


def _compute(request: SearchRequest, found: Plan | None, group: Group) -> Compute:
    """As `compute_on`, the precision being that of the search found, or the first process's choice."""
    dtype = request.dtype
    if dtype == "auto":
        dtype = found.settings.get("dtype", dtype) if found else dtype
        chosen = choose_dtype(dtype, choose_device(request.device, local_rank()))
        dtype = group.same_text(dtype_name(chosen)) or dtype
    return replace(compute_on(request.device, dtype, request.memory), group=group)


def _saved(request: SearchRequest, group: Group) -> Plan | None:
    """The unfinished search there is, if it is to be continued; refuses to overwrite it unasked."""
    text = None
    if group.rank == 0 and request.unfinished.exists() and (request.resume or not request.force):
        found = read_plan(request.unfinished)
        if not request.resume:
            raise TinyslebError(
                f"{request.unfinished} holds a search that stopped after {len(found.rounds)} rounds",
                "continue it with --resume, or start again with --force",
            )
        text = json.dumps(plan_to_json(found))
    text = group.same_text(text)
    return None if text is None else plan_from_json(json.loads(text), request.unfinished)


def _check_same_everywhere(plan: Plan, group: Group) -> None:
    """Processes with other models or texts would add up what does not belong together."""
    first = json.loads(group.same_text(json.dumps(plan.settings)) or "{}")
    for key, value in plan.settings.items():
        if first[key] != value:
            raise TinyslebError(
                f"process {group.rank} has {key} {value!r}, process 0 has {first[key]!r}",
                "give all processes the same model, texts and versions",
            )


def _continued(plan: Plan, found: Plan, where: Path) -> Plan:
    """The rounds found, as many as are wanted, if they come from the same settings."""
    for key, value in plan.settings.items():
        if found.settings.get(key) != value:
            raise TinyslebError(
                f"{where} was made with {key} {found.settings.get(key)!r}, now it is {value!r}",
                "resume with the same settings, or start again with --force",
            )
    return replace(plan, loss=found.loss, rounds=found.rounds[: plan.target])


def _settings(
    weights: Weights, calibration: Calibration, compute: Compute, request: SearchRequest
) -> dict[str, Any]:
    return {
        "version": __version__,
        "model": weights.path.resolve().name,
        "fingerprint": fingerprint(weights),
        "metric": request.metric,
        "exact": request.exact,
        "seed": request.seed,
        "text": calibration.source,
        "windows": calibration.tokens.shape[0],
        "window_length": calibration.tokens.shape[1],
        "text_sha256": calibration.sha256,
        "keep_first": request.keep_first,
        "keep_last": request.keep_last,
        "dtype": dtype_name(compute.dtype),
        "device": compute.device.type,
    }


def _announcement(
    plan: Plan, calibration: Calibration, rule: StoppingRule, compute: Compute, weights: Weights, allowed: int
) -> Iterator[str]:
    count, length = calibration.tokens.shape
    windows = f"{count} window" if count == 1 else f"{count} windows"
    removing = f"removing {rule.most} of" if rule.by_count_alone else f"removing blocks until {rule.name}, of"
    processes = f", {compute.group.size} processes" if compute.group.size > 1 else ""
    yield (
        f"{removing} {plan.blocks} blocks; calibrating on {windows} of {length} tokens of "
        f"{calibration.source}; {plan.settings['dtype']} products on {plan.settings['device']}{processes}"
    )
    memory = compute.memory_plan(weights, allowed, count, length)
    sweeps = sweeps_in_a_round(count, memory.windows, bool(plan.settings["exact"]))
    yield describe_memory(memory, count, sweeps, total_bytes(weights))


def _round_line(plan: Plan) -> str:
    *earlier, round_ = plan.rounds
    line = f"round {len(plan.rounds)}/{plan.target}: block {round_.removed} removed"
    before = earlier[-1].loss if earlier else plan.loss
    if before is not None and not math.isnan(before + round_.loss):
        line += f", perplexity {perplexity(before):.2f} -> {perplexity(round_.loss):.2f}"
    if round_.candidates:
        most = max(score.windows for score in round_.candidates.values())
        left_early = sum(score.windows < most for score in round_.candidates.values())
        line += f", {len(round_.candidates)} candidates ({left_early} left early)"
    return f"{line}, {round_.seconds:.1f} s"
