"""`tinysleb inspect`: what a model is, and what `prune` would need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console, duration, print_json, print_line
from tinysleb.commands.describe import describe
from tinysleb.commands.opening import opened
from tinysleb.commands.options import Given, refuse_unused
from tinysleb.commands.plans import plan_values
from tinysleb.commands.preview import Preview, hold_what_prune_holds, previews
from tinysleb.commands.stored_types import faster_type
from tinysleb.compute.compute import compute_on
from tinysleb.compute.threads import use_threads
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.plan import plan_from_json
from tinysleb.search.cuts import DEFAULT_KIND, candidates, removable
from tinysleb.search.estimate import estimate
from tinysleb.text.windows import DEFAULT_WINDOWS


@dataclass(frozen=True)
class InspectOptions:
    """The options of `inspect`."""

    model: Path
    memory: str | None
    windows: int | None
    window_length: int
    threads: int | None
    as_json: bool
    given: Given = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a usage error for options that only an estimate uses."""
        if self.memory is None:
            refuse_unused(self.given, ("windows",), "Without --memory nothing is estimated")


def inspect(options: InspectOptions) -> None:
    """Print what the headers say or, with a memory, what a search would do with it."""
    weights = opened(options.model, Console())
    length = min(options.window_length, weights.config.context_length)
    use_threads(options.threads)
    hold_what_prune_holds(weights, options.windows or DEFAULT_WINDOWS, length)
    if options.memory is not None:
        _print_estimate(weights, options, options.memory, length)
        return
    compute = compute_on()
    values = describe(weights, length, compute) | {"plan": _plan_told(options.model)}
    cuts = previews(weights, compute, length)
    if options.as_json:
        print_json(values | {"cuts": [asdict(each) for each in cuts]})
        return
    _print_values(values)
    for each in cuts:  # which a block is tried for, and that takes its time
        _print_preview(each)
    if note := faster_type(weights):
        print_line(note)


def _print_values(values: dict[str, Any]) -> None:
    least, passes = values.pop("prune_memory_bytes"), values.pop("prune_block_passes")
    if (plan := values.pop("plan")) is not None:
        healed = ", healed" if plan["healed"] else ""
        print_line(
            f"{'shortened':<20} from {plan['blocks']} blocks, without {_listed(plan['removed'])}{healed}"
        )
    for key, value in values.items():
        print_line(f"{key.replace('_', ' '):<20} {_shown(key, value)}")
    print_line(f"{'prune needs':<20} --memory of about {format_bytes(least)} at least")
    print_line(f"{'':<20} {passes} block passes for each window in the first round, with --exact")


def _print_preview(cut: Preview) -> None:
    line = (
        f"{format_bytes(cut.bytes)}; at best {cut.prompt_speed:.2f} times as fast with prompts, "
        f"{cut.generation_speed:.2f} times in generation"
    )
    if cut.search_seconds is not None and cut.healing_seconds is not None:
        line += f"; search {duration(cut.search_seconds)}, healing {duration(cut.healing_seconds)}, about"
    print_line(f"{_without(cut.removed):<20} {line}")


def _without(removed: int) -> str:
    return f"without {removed} block{'' if removed == 1 else 's'}"


def _plan_told(model: Path) -> dict[str, Any] | None:
    """What is known of how a model was shortened, if it was."""
    with suppress(TinyslebError):  # the model is what is to be shown, whatever its plan looks like
        where, values = plan_values(model)
        plan = plan_from_json(values, where)
        return {"blocks": plan.blocks, "removed": list(plan.removed), "healed": bool(plan.healing)}
    return None


def _print_estimate(weights: Checkpoint, options: InspectOptions, memory: str, length: int) -> None:
    count, blocks = options.windows or DEFAULT_WINDOWS, weights.config.blocks
    cuts = candidates(range(2 * blocks), removable(blocks, 1, 1), DEFAULT_KIND)
    needs = estimate(weights, compute_on(memory=memory), cuts, count, length)
    if options.as_json:
        print_json(asdict(needs))
        return
    sweeps = "1 sweep" if needs.sweeps == 1 else f"{needs.sweeps} sweeps"
    fitting = f"{needs.windows} of {length} tokens, {needs.windows_in_a_sweep} in a sweep"
    reading = "the next block is read while one computes" if needs.reads_ahead else "one block at a time"
    print_line(f"windows              {fitting}")
    print_line(
        f"a round, --exact     {sweeps}, {format_bytes(needs.bytes_read)} read; racing reads once a heat"
    )
    print_line(f"reading ahead        {reading}")
    print_line(f"between rounds       {format_bytes(needs.state_bytes)} for kept states")
    print_line(f"the first round      {needs.block_passes} block passes of a window, with --exact")
    spent = f"about {duration(needs.seconds)} with --exact; {needs.dtype} on {needs.device}"
    print_line(f"time                 {spent}")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in value.items())
    if key.endswith("bytes") and isinstance(value, int):
        return format_bytes(value)
    if isinstance(value, list):
        return _listed(value)
    return f"{value:,}" if key.endswith("parameters") else str(value)
