"""How many windows fit into the memory the user gives: one formula, used before any slow work."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tinysleb.config import ModelConfig, block_parameter_count, block_shapes
from tinysleb.errors import TinyslebError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
VOCABULARY_CHUNK = 4096
"""Rows of the head (or the embedding) read at a time."""
TOKEN_CHUNK = 1024
"""Tokens whose logits over one chunk of the vocabulary are held at a time."""
CALL_TOKENS = 2048
"""Tokens that go through a block in one call, unless one window is longer."""
SPARE_STREAMS = 3
"""Streams besides the candidates': the base, and the copies that scoring makes of one."""
ASSUMED_RESIDENT_BYTES = 400 * 2**20
"""What the program takes before it begins, where that cannot be measured."""


def parse_bytes(text: str) -> int:
    """`4GiB`, `900MB` or a plain number of bytes. Raises TinyslebError for anything else."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]?I?)B?\s*", text.upper())
    if match is None or not re.fullmatch(r"\d+\.?\d*|\.\d+", match[1]) or match[2] not in UNITS:
        raise TinyslebError(f"{text!r} is no amount of memory", "write it as 4GiB or 900MB")
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


def windows_per_sweep(config: ModelConfig, streams: int, length: int, item_bytes: int, budget: Budget) -> int:
    """The most windows of `length` tokens whose `streams` hidden states fit into the budget.

    Counts what is resident already, one block with matrices of `item_bytes` per value, the tensor being
    read, the activations of one call, and the head's chunk. Raises TinyslebError with the least that
    would do.
    """
    window = streams * length * config.width * 4
    fixed = budget.resident + working_bytes(config, length, item_bytes)
    fitting = (budget.total - fixed) // window
    if fitting < 1:
        raise TinyslebError(
            f"--memory {format_bytes(budget.total)} is too little for one window of {length} tokens "
            f"in {streams} variants of the model",
            f"at least {format_bytes(fixed + window)} would do, or a shorter --window-length",
        )
    return fitting


def working_bytes(config: ModelConfig, length: int, item_bytes: int) -> int:
    """Memory besides the hidden states: a block, its reading, one call's activations, the head's chunk."""
    largest = max(shape[0] * shape[-1] for shape in block_shapes(config).values())
    block = block_parameter_count(config) * item_bytes + largest * 8
    tokens = max(length, CALL_TOKENS)
    activations = tokens * (3 * config.intermediate + 8 * config.width) * 4
    head = VOCABULARY_CHUNK * (config.width * (8 + item_bytes) + 2 * TOKEN_CHUNK * 4)
    return block + max(activations, head)


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
