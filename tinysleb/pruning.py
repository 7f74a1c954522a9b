"""From what a user asks for to a finished plan: calibrate, choose device and precision, search, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinysleb import __version__
from tinysleb.calibration import Calibration, from_text, from_token_file
from tinysleb.device import choose_device, choose_dtype
from tinysleb.errors import TinyslebError
from tinysleb.files import write_json
from tinysleb.fingerprint import fingerprint
from tinysleb.memory import Budget, parse_bytes, resident_bytes
from tinysleb.plan import Plan, perplexity, plan_to_json, read_plan
from tinysleb.search import Compute, Progress, check_target, removable, search
from tinysleb.tokenizer import open_tokenizer
from tinysleb.weights import Weights

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

    target: int
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
    weights: Weights, request: SearchRequest, say: Callable[[str], None], progress: Progress
) -> Plan:
    """Search, saving the plan after every round; `say` is told what begins and what each round did.

    Raises TinyslebError if the request cannot be met, before any slow work where that can be known.
    """
    blocks = weights.config.blocks
    allowed = removable(blocks, request.keep_first, request.keep_last)
    check_target(request.target, blocks, allowed)
    found = _saved(request)
    calibration = calibrate(weights, request.windows, request.seed)
    dtype = found.settings.get("dtype", request.dtype) if found and request.dtype == "auto" else request.dtype
    compute = compute_on(request.device, dtype, request.memory)
    plan = Plan(blocks, request.target, _settings(weights, calibration, compute, request))
    plan = _continued(plan, found, request.unfinished) if found else plan
    say(_announcement(plan, calibration))
    try:
        for latest in search(
            weights, calibration.tokens, plan, compute,
            allowed=allowed, exact=request.exact, progress=progress,
        ):  # fmt: skip
            plan = latest
            write_json(request.unfinished, plan_to_json(plan))
            say(_round_line(plan))
    except KeyboardInterrupt:
        if plan.rounds:
            say(f"stopped after {len(plan.rounds)} rounds; the same command with --resume continues")
        raise
    return plan


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
    total, device = parse_bytes(memory), choose_device(device_name)
    return Compute(device, choose_dtype(dtype_name, device), Budget(total, resident_bytes()))


def _saved(request: SearchRequest) -> Plan | None:
    """The unfinished search there is, if it is to be continued; refuses to overwrite it unasked."""
    if not request.unfinished.exists() or (request.force and not request.resume):
        return None
    found = read_plan(request.unfinished)
    if not request.resume:
        raise TinyslebError(
            f"{request.unfinished} holds a search that stopped after {len(found.rounds)} rounds",
            "continue it with --resume, or start again with --force",
        )
    return found


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
        "metric": "perplexity",
        "exact": request.exact,
        "seed": request.seed,
        "text": calibration.source,
        "windows": calibration.tokens.shape[0],
        "window_length": calibration.tokens.shape[1],
        "text_sha256": calibration.sha256,
        "keep_first": request.keep_first,
        "keep_last": request.keep_last,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "device": compute.device.type,
    }


def _announcement(plan: Plan, calibration: Calibration) -> str:
    count, length = calibration.tokens.shape
    windows = f"{count} window" if count == 1 else f"{count} windows"
    return (
        f"removing {plan.target} of {plan.blocks} blocks; calibrating on {windows} of {length} tokens of "
        f"{calibration.source}; {plan.settings['dtype']} products on {plan.settings['device']}"
    )


def _round_line(plan: Plan) -> str:
    *earlier, round_ = plan.rounds
    before = earlier[-1].loss if earlier else plan.loss
    most = max(score.windows for score in round_.candidates.values())
    left_early = sum(score.windows < most for score in round_.candidates.values())
    return (
        f"round {len(plan.rounds)}/{plan.target}: block {round_.removed} removed, perplexity "
        f"{perplexity(before or 0):.2f} -> {perplexity(round_.loss):.2f}, "
        f"{len(round_.candidates)} candidates ({left_early} left early), {round_.seconds:.1f} s"
    )
