"""From what a user asks for to a finished plan: calibrate, choose device and precision, search, resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinysleb import __version__
from tinysleb.calibration import Calibration, from_text, from_token_file
from tinysleb.device import choose_device, choose_dtype, device_budget, dtype_name
from tinysleb.distributed import Group, local_rank
from tinysleb.errors import TinyslebError
from tinysleb.files import write_json
from tinysleb.fingerprint import fingerprint
from tinysleb.memory import describe_memory, parse_bytes
from tinysleb.metrics import check_metric, search_by_metric
from tinysleb.plan import PERPLEXITY, Plan, perplexity, plan_from_json, plan_to_json, read_plan
from tinysleb.search import Compute, Progress, check_target, removable, sweeps_in_a_round
from tinysleb.stopping import StoppingRule, ended
from tinysleb.tokenizer import open_tokenizer
from tinysleb.weights import Weights, total_bytes

DEFAULT_WINDOWS = 4


@dataclass(frozen=True)
class Windows:
    """Where windows come from: texts or a token file, how many (None: as many as usual), how long."""

    texts: Sequence[Path]
    token_file: Path | None
    count: int | None
    length: int


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


def calibrate(weights: Weights, windows: Windows, seed: int | None) -> Calibration:
    """The windows asked for: sampled with a seed, in order and all of them without one.

    Windows are never longer than the model's context. Raises TinyslebError if there are none.
    """
    config = weights.config
    if windows.token_file is not None:
        found = from_token_file(windows.token_file, config.vocab_size, windows.count)
        if (length := found.tokens.shape[1]) > config.context_length:
            raise TinyslebError(
                f"{windows.token_file} has windows of {length} tokens, "
                f"the model's context has {config.context_length}"
            )
        return found
    count = windows.count or (DEFAULT_WINDOWS if seed is not None else None)
    length = min(windows.length, config.context_length)
    return from_text(open_tokenizer(weights), windows.texts, length, count, seed, config.vocab_size)


def compute_on(device_name: str, dtype_name: str, memory: str) -> Compute:
    """Device, dtype and memory by their names; what the process holds is measured here."""
    total, device = parse_bytes(memory), choose_device(device_name, local_rank())
    return Compute(device, choose_dtype(dtype_name, device), device_budget(device, total))


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
