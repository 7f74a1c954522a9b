"""From windows and a stopping rule to a finished plan: the metric's search, saved after every round."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tinysleb import __version__
from tinysleb.checkpoint.fingerprint import fingerprint, model_fingerprint, stored_types
from tinysleb.checkpoint.weights import Shortened, Weights, total_bytes
from tinysleb.compute.compute import Compute, Progress, compute_on
from tinysleb.compute.device import dtype_name
from tinysleb.compute.distributed import Group
from tinysleb.compute.memory import describe_memory
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import valid_text, write_json
from tinysleb.plan import (
    PERPLEXITY,
    Plan,
    Round,
    plan_from_json,
    plan_to_json,
    read_plan,
    shown_loss,
    usual_score,
)
from tinysleb.search import rounds
from tinysleb.search.cost import Costs, generation_costs
from tinysleb.search.cuts import ANY, BLOCK, CONTEXT, DEFAULT_KIND, check_target, removable
from tinysleb.search.evaluate import evaluate
from tinysleb.search.exchange import exchange
from tinysleb.search.metrics import METRICS, Scoring, check_metric, order_cuts
from tinysleb.search.original import Original, ask_original
from tinysleb.search.race import same_cost, sweeps_in_a_round
from tinysleb.search.stopping import StoppingRule, by_count, by_saving, finished_plan
from tinysleb.sublayers import Cut, cut_title
from tinysleb.text.windows import Calibration

EARLIER = {"cut": BLOCK, "score": PERPLEXITY}
"""What settings were before plans had them."""


@dataclass(frozen=True)
class SearchRequest:
    """What a search is asked to do: until when, by which metric, over which cuts.

    `keep_first` and `keep_last`: how many blocks at the bottom and at the top stay. `kind`: what a cut is,
    one of `cuts.KINDS`. `costs`: by which cuts of any kind are weighed. `exact`: score all candidates on all
    windows. `refine`: exchange cuts for better ones after the last round, if there are windows to judge by.
    `score`: what a loss is, that of the text or the divergence from the original.
    `seed`: chose the windows, and chooses cuts where the metric is `random`.
    """

    rule: StoppingRule
    metric: str = PERPLEXITY
    seed: int = 0
    keep_first: int = 1
    keep_last: int = 1
    exact: bool = False
    kind: str = DEFAULT_KIND
    costs: Costs | None = None
    refine: bool = False
    score: str = PERPLEXITY


def search(
    weights: Weights,
    windows: Tensor,
    *,
    remove: int,
    score: str | None = None,
    cut: str = DEFAULT_KIND,
    metric: str = PERPLEXITY,
    exact: bool = False,
    keep_first: int = 1,
    keep_last: int = 1,
    seed: int = 0,
    compute: Compute | None = None,
    progress: Progress = lambda _what, _done: None,
) -> Plan:
    """The plan that removes `remove` blocks of `weights`, or as many halves, found on `windows` `[n, T]`.

    `score`: "perplexity", or "kl" for the divergence from the original, the default of the metric
    `perplexity`. `cut`: what may go together, one of `cuts.KINDS`; of any, what costs as much as so many
    blocks.

    Raises TinyslebError if so many blocks cannot go, memory is too little, or a loss is not finite.
    """
    rule, costs = by_count(remove, f"remove={remove}"), generation_costs(weights, CONTEXT)
    if cut == ANY:
        check_target(remove, weights.config.blocks, removable(weights.config.blocks, keep_first, keep_last))
        rule = by_saving(remove * costs.block, costs, 2 * weights.config.blocks, rule.name)
    request = SearchRequest(
        rule, metric, seed, keep_first, keep_last, exact, cut, costs, score=score or usual_score(metric)
    )
    calibration = Calibration(windows, "windows given by the caller")
    compute = compute or compute_on()
    return run_search(weights, calibration, request, compute, say=lambda _line: None, progress=progress)


def run_search(
    weights: Weights,
    calibration: Calibration,
    request: SearchRequest,
    compute: Compute,
    *,
    saved: Plan | None = None,
    unfinished: Path | None = None,
    say: Callable[[str], None],
    progress: Progress,
) -> Plan:
    """Search, saving the plan in `unfinished` after every round; `say` is told what each round did.

    `saved`: an unfinished search of the same settings, to continue. In a group of processes, the first one
    saves. Raises TinyslebError if the request cannot be met, before any slow work where that can be known.
    """
    blocks, rule, group = weights.config.blocks, request.rule, compute.group
    allowed = check_request(request, blocks)
    plan = Plan(blocks, rule.most, _settings(weights, calibration, compute, request))
    _check_same_everywhere(plan, group)
    if saved is not None:
        plan = _continue(plan, saved, unfinished)
    scoring = Scoring(weights, calibration.tokens, plan, compute, allowed, request.kind, progress)
    for line in _announcement(scoring, calibration, rule):
        say(line)
    original = _original(scoring, calibration.tokens)
    following = _rounds(scoring, request, original)
    while (finished := finished_plan(rule, plan)) is None:
        begin = time.monotonic()
        plan = next(following)
        if unfinished is not None and request.metric == PERPLEXITY and group.rank == 0:
            write_json(unfinished, plan_to_json(plan))
        say(f"{_round_line(plan)}, {time.monotonic() - begin:.1f} s")
    if request.refine and calibration.others is not None:
        return _refined(replace(scoring, plan=finished), original, calibration.others, say)
    return finished


def announce(
    weights: Weights, calibration: Calibration, request: SearchRequest, compute: Compute
) -> list[str]:
    """What `run_search` says before it begins. Raises TinyslebError as that does."""
    blocks = weights.config.blocks
    plan = Plan(blocks, request.rule.most, _settings(weights, calibration, compute, request))
    allowed = check_request(request, blocks)
    scoring = Scoring(
        weights, calibration.tokens, plan, compute, allowed, request.kind, lambda _what, _done: None
    )
    return list(_announcement(scoring, calibration, request.rule))


def _refined(scoring: Scoring, original: Original | None, others: Tensor, say: Callable[[str], None]) -> Plan:
    """The plan with cuts exchanged for better ones, if they are that on other windows, too."""
    plan, begin = scoring.plan, time.monotonic()
    better = exchange(
        scoring.weights, scoring.tokens, plan, scoring.compute,
        allowed=scoring.allowed, kind=scoring.kind, progress=scoring.progress,
        original=original,
    )  # fmt: skip
    if better is plan:
        say(f"no cut can be exchanged for a better one, {time.monotonic() - begin:.1f} s")
        return plan
    of_others = _original(scoring, others)
    before, after = (
        evaluate(Shortened(scoring.weights, each.kept), others, scoring.compute, original=of_others).loss
        for each in (plan, better)
    )
    removed = ", ".join(map(str, better.removed))
    verdict = "kept" if after < before else "not kept"
    say(
        f"exchanged for {removed}: on other windows, {_change(plan, before, after)}, {verdict}, "
        f"{time.monotonic() - begin:.1f} s"
    )
    return better if after < before else plan


def check_request(request: SearchRequest, blocks: int) -> range:
    """The blocks that may go, of a model of so many. Raises TinyslebError if the request cannot be met."""
    allowed = removable(blocks, request.keep_first, request.keep_last)
    if request.rule.saving is None:
        check_target(request.rule.most, blocks, allowed)
    check_metric(request.metric, request.kind, request.rule.by_count_alone)
    return allowed


def read_unfinished(path: Path, resume: bool, force: bool, group: Group) -> Plan | None:
    """The unfinished search at `path`, if it is to be continued; the same in all processes.

    Raises TinyslebError if there is one, and it is neither to be continued nor to be replaced.
    """
    text = None
    if group.rank == 0 and path.exists() and (resume or not force):
        plan = read_plan(path)
        if not resume:
            raise TinyslebError(
                f"{path} holds a search that stopped after {len(plan.rounds)} rounds",
                "continue it with --resume, or start again with --force",
            )
        text = json.dumps(plan_to_json(plan))
    text = group.same_text(text)
    return None if text is None else plan_from_json(json.loads(text), path)


def _rounds(scoring: Scoring, request: SearchRequest, original: Original | None) -> Iterator[Plan]:
    """The plan after each round, by the metric asked for."""
    score = METRICS[request.metric].score
    if score is not None:
        return _rounds_by_score(score, scoring, request)
    costs, cost = request.costs, same_cost
    if request.kind == ANY and costs is not None:
        cost = partial(_relative_cost, costs)
    return rounds.search(
        scoring.weights, scoring.tokens, scoring.plan, scoring.compute,
        allowed=scoring.allowed, kind=scoring.kind, exact=request.exact, progress=scoring.progress, cost=cost,
        original=original,
    )  # fmt: skip


def _original(scoring: Scoring, tokens: Tensor) -> Original | None:
    """What the original says of windows, if candidates are scored by it."""
    if not scoring.plan.by_divergence:
        return None
    return ask_original(scoring.weights, tokens, scoring.compute)


def _change(plan: Plan, before: float, after: float) -> str:
    """A change of the loss, as a person is told it."""
    if plan.by_divergence:
        return f"divergence {shown_loss(plan, before)} -> {shown_loss(plan, after)} nats"
    return f"perplexity {shown_loss(plan, before)} -> {shown_loss(plan, after)}"


def _relative_cost(costs: Costs, cut: Cut) -> float:
    """What a cut saves, relative to a block."""
    return costs.of(cut) / costs.block


def _rounds_by_score(
    score: Callable[[Scoring], dict[Cut, float]], scoring: Scoring, request: SearchRequest
) -> Iterator[Plan]:
    """Rounds of a metric that scores cuts once. The loss is measured of the original model and at the end,
    or after every round where the stopping rule asks for it."""
    scores, plan = score(scoring), scoring.plan
    order = order_cuts(METRICS[request.metric], scores, plan.target)

    def loss(plan: Plan) -> float:
        shorter = Shortened(scoring.weights, plan.kept)
        progress = partial(scoring.progress, "evaluating")
        return evaluate(shorter, scoring.tokens, scoring.compute, progress).loss

    plan = replace(plan, scores=scores, loss=loss(plan))
    for number, cut in enumerate(order, 1):
        following = replace(plan, rounds=(*plan.rounds, Round(cut, math.nan, {})))
        measured = request.rule.increase is not None or number == plan.target
        round_ = Round(cut, loss(following) if measured else math.nan, {})
        plan = replace(plan, rounds=(*plan.rounds, round_))
        yield plan


def _check_same_everywhere(plan: Plan, group: Group) -> None:
    """Processes with other models or texts would add up what does not belong together."""
    first = json.loads(group.same_text(json.dumps(plan.settings)) or "{}")
    for key, value in plan.settings.items():
        if first[key] != value:
            raise TinyslebError(
                f"process {group.rank} has {key} {value!r}, process 0 has {first[key]!r}",
                "give all processes the same model, texts and versions",
            )


def _continue(plan: Plan, saved: Plan, where: Path | None) -> Plan:
    """The saved rounds, as many as are wanted, if they come from the same settings."""
    for key, value in plan.settings.items():
        if saved.settings.get(key, EARLIER.get(key)) != value:
            raise TinyslebError(
                f"{where} was made with {key} {saved.settings.get(key)!r}, now it is {value!r}",
                "resume with the same settings, or start again with --force",
            )
    return replace(plan, loss=saved.loss, rounds=saved.rounds[: plan.target])


def _settings(
    weights: Weights, calibration: Calibration, compute: Compute, request: SearchRequest
) -> dict[str, Any]:
    return {
        "version": __version__,
        "model": valid_text(weights.path.resolve().name),
        "fingerprint": fingerprint(weights),
        "model_fingerprint": model_fingerprint(weights),
        "types": stored_types(weights),
        "metric": request.metric,
        "score": request.score,
        "cut": request.kind,
        **({"context": request.costs.context} if request.kind == ANY and request.costs else {}),
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


def _announcement(scoring: Scoring, calibration: Calibration, rule: StoppingRule) -> Iterator[str]:
    plan, compute, weights = scoring.plan, scoring.compute, scoring.weights
    count, length = calibration.tokens.shape
    windows = f"{count} window" if count == 1 else f"{count} windows"
    removing = f"making cuts until {rule.name} is met, of"
    if rule.by_quality:
        removing = "removing as many as the model bears of"
    elif rule.by_count_alone:
        removing = f"removing {rule.most} of"
    processes = f", {compute.group.size} processes" if compute.group.size > 1 else ""
    yield (
        f"{removing} {plan.blocks} blocks; calibrating on {windows} of {length} tokens of "
        f"{calibration.source}; {plan.settings['dtype']} products on {plan.settings['device']}{processes}"
    )
    memory = compute.memory_plan(weights, len(scoring.cuts), count, length)
    sweeps = sweeps_in_a_round(count, memory.windows, bool(plan.settings["exact"]))
    yield describe_memory(memory, count, sweeps, total_bytes(weights))


def _round_line(plan: Plan) -> str:
    *earlier, round_ = plan.rounds
    line = f"round {len(plan.rounds)}/{plan.target}: {cut_title(round_.cut)} removed"
    before = earlier[-1].loss if earlier else plan.loss
    if before is not None and not math.isnan(before + round_.loss):
        line += f", {_change(plan, before, round_.loss)}"
    if round_.candidates:
        most = max(score.windows for score in round_.candidates.values())
        left_early = sum(score.windows < most for score in round_.candidates.values())
        line += f", {len(round_.candidates)} candidates ({left_early} left early)"
    return line
