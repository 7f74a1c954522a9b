"""`tinysleb inspect`: what a model is, and what `prune` would need."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console, duration, print_json, print_line
from tinysleb.commands.describe import describe
from tinysleb.commands.opening import opened
from tinysleb.commands.options import Given, refuse_unused
from tinysleb.commands.stored_types import faster_type
from tinysleb.compute.compute import compute_on
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes


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
            refuse_unused(self.given, ("windows", "threads"), "Without --memory nothing is estimated")


def inspect(options: InspectOptions) -> None:
    """Print what the headers say or, with a memory, what a search would do with it."""
    weights = opened(options.model, Console())
    if options.memory is not None:
        _print_estimate(weights, options, options.memory)
        return
    values = describe(weights, options.window_length, compute_on())
    if options.as_json:
        print_json(values)
        return
    least, passes = values.pop("prune_memory_bytes"), values.pop("prune_block_passes")
    for key, value in values.items():
        print_line(f"{key.replace('_', ' '):<20} {_shown(key, value)}")
    print_line(f"{'prune needs':<20} --memory of about {format_bytes(least)} at least")
    print_line(f"{'':<20} {passes} block passes for each window in the first round, with --exact")
    if note := faster_type(weights):
        print_line(note)


def _print_estimate(weights: Checkpoint, options: InspectOptions, memory: str) -> None:
    from tinysleb.compute.threads import use_threads
    from tinysleb.search.cuts import DEFAULT_KIND, candidates, removable
    from tinysleb.search.estimate import estimate
    from tinysleb.text.windows import DEFAULT_WINDOWS, WindowSource, read_windows

    count = options.windows or DEFAULT_WINDOWS
    length = min(options.window_length, weights.config.context_length)
    with suppress(TinyslebError):  # prune holds these when it begins, unless there is no tokenizer
        read_windows(weights, WindowSource((), None, count, length), seed=0)
    use_threads(options.threads)
    blocks = weights.config.blocks
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


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in value.items())
    if key.endswith("bytes") and isinstance(value, int):
        return format_bytes(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if key.endswith("parameters") else str(value)
