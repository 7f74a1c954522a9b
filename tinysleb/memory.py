"""How many windows fit into the memory the user gives: one formula, used before any slow work."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinysleb.config import ModelConfig, block_parameter_count, block_shapes
from tinysleb.errors import TinyslebError

UNITS = {"": 1} | {
    prefix + binary: (1024 if binary else 1000) ** power
    for power, prefix in enumerate("KMGT", 1)
    for binary in ("", "I")
}
VOCABULARY_CHUNK = 2048
"""Rows of the head (or the embedding) read at a time."""
TOKEN_CHUNK = 1024
"""Tokens whose logits over one chunk of the vocabulary are held at a time."""
QUERY_CHUNK = 128
"""Queries whose attention scores are held at a time, where attention is computed in chunks."""
CALL_TOKENS = 2048
"""Tokens that go through a block in one call, unless one window is longer."""
SPARE_STREAMS = 3
"""Streams besides the candidates': the base twice, while it is copied, and the copy that scoring makes."""
ASSUMED_RESIDENT_BYTES = 400 * 2**20
"""What the program takes before it begins, where that cannot be measured."""


def parse_bytes(text: str) -> int:
    """`4GiB`, `900MB` or a plain number of bytes. Raises TinyslebError for anything else."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or not re.fullmatch(r"\d+\.?\d*|\.\d+", match[1]) or match[2] not in UNITS:
        raise TinyslebError(f"{text!r} is no number of bytes", "write it as 4GiB or 900MB")
    return int(float(match[1]) * UNITS[match[2]])


def format_bytes(count: float) -> str:
    """A size for people: `1.8 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


@dataclass(frozen=True)
class Budget:
    """A limit for the whole process, and what it held before the work began, in bytes.

    What is held is measured once: memory that was freed and kept for reuse would count as taken later.
    """

    total: int
    resident: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a search does with its memory.

    `windows`: how many at a time; each group of them costs a sweep. `ahead`: whether the next block is read
    while one computes. `states`: bytes left for hidden states kept between rounds.
    """

    windows: int
    ahead: bool
    states: int


def plan_memory(
    config: ModelConfig, candidates: int, shape: tuple[int, int], item_bytes: int, budget: Budget
) -> MemoryPlan:
    """Divide the budget for a sweep over `candidates` and windows of `shape` `(n, T)`.

    Counted are what is resident already, one block with matrices of `item_bytes` per value, or two, the
    tensor being read, the activations of one call, the head's chunk, and the streams. First comes one
    window, then reading ahead, then more windows; what is left when all fit is for states. Raises
    TinyslebError with the least that would do.
    """
    count, length = shape
    streams = candidates + SPARE_STREAMS
    window = streams * length * config.width * 4
    free = budget.total - budget.resident - working_bytes(config, length, item_bytes)
    if free < window:
        raise TinyslebError(
            f"--memory {format_bytes(budget.total)} is too little for one window of {length} tokens "
            f"in {streams} variants of the model",
            f"at least {format_bytes(rounded_up(budget.total - free + window))} would do, "
            "or a shorter --window-length",
        )
    block = block_parameter_count(config) * item_bytes
    ahead = free >= window + block
    free -= block if ahead else 0
    fitting = min(count, free // window)
    return MemoryPlan(fitting, ahead, free - count * window if fitting == count else 0)


def rounded_up(count: int) -> int:
    """To the next 16 MiB: what a process holds before it begins differs a little from run to run."""
    return -(-count // 2**24) * 2**24


def describe_memory(plan: MemoryPlan, windows: int, sweeps: int, model_bytes: int) -> str:
    """What a plan for so many windows and sweeps a round means, in a line."""
    groups = "all windows" if plan.windows == windows else f"{plan.windows} of {windows} windows"
    times = "once" if sweeps == 1 else f"up to {sweeps} times"
    ahead = "the next block is read while one computes" if plan.ahead else "one block at a time"
    states = f"; up to {format_bytes(plan.states)} for states kept between rounds" if plan.states else ""
    return (
        f"memory: {groups} fit into a sweep; {format_bytes(model_bytes)} of weights are read {times} "
        f"to choose a block; {ahead}{states}"
    )


def working_bytes(config: ModelConfig, length: int, item_bytes: int) -> int:
    """Memory besides the hidden states: a block, its reading, one call's activations, the head's chunk."""
    largest = max(shape[0] * shape[-1] for shape in block_shapes(config).values())
    block = block_parameter_count(config) * item_bytes + largest * 8
    tokens = max(length, CALL_TOKENS)
    activations = tokens * (3 * config.intermediate + 8 * config.width) * 4
    head = VOCABULARY_CHUNK * (config.width * (8 + item_bytes) + 2 * TOKEN_CHUNK * 4)
    return block + max(activations, head)


def give_back_freed() -> None:
    """Hand memory that was freed back to the system, between stages; only glibc keeps much of it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """The memory this process holds now: resident pages on Linux, the peak so far on other Unixes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import resource

        return pages * resource.getpagesize()
    except (OSError, ImportError):
        pass
    try:
        import resource
    except ImportError:
        return ASSUMED_RESIDENT_BYTES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
