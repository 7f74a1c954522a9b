"""How many windows fit into the memory the user gives: one formula, used before any slow work."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinysleb.checkpoint.config import ModelConfig, block_parameter_count, block_shapes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.model.chunks import CALL_TOKENS, DRAWN_AT_ONCE, TOKEN_CHUNK, VOCABULARY_CHUNK

SPARE_STREAMS = 3
"""Streams besides the candidates': the base twice, while it is copied, and the copy that scoring makes."""
M_MMAP_THRESHOLD = -3
"""The number of that parameter in glibc's malloc.h."""
ASSUMED_RESIDENT_BYTES = 400 * 2**20
"""What the program takes before it begins, where that cannot be measured."""


@dataclass(frozen=True)
class Budget:
    """A limit for the whole process, and what it held before the work began, in bytes.

    What is held is measured once: memory that was freed and kept for reuse would count as taken later.
    """

    total: int
    resident: int


class Allowance:
    """What a budget leaves beyond the `least` bytes that some work needs, handed out in the order asked for.

    Raises TinyslebError with the least that would do, if the budget has less; `verdict` says what for.
    """

    def __init__(self, budget: Budget, least: int, verdict: str) -> None:
        self.bytes = budget.total - budget.resident - least
        if self.bytes < 0:
            raise TinyslebError(
                f"{format_bytes(budget.total)} of memory {verdict}",
                f"at least {format_bytes(rounded_up(budget.resident + least))} would do (--memory)",
            )

    def grant(self, needed: int) -> bool:
        """Take so many bytes if they are there; whether they are."""
        fits = needed <= self.bytes
        self.bytes -= needed if fits else 0
        return fits


@dataclass(frozen=True)
class MemoryPlan:
    """What a search does with its memory.

    `windows`: how many at a time; each group of them costs a sweep. `ahead`: whether the next block is read
    while one computes. `states`: bytes left for hidden states kept between rounds. `tight`: there is no room
    for freed buffers that the allocator keeps, see `obey`. `resident`: whether all blocks are kept once read.
    """

    windows: int
    ahead: bool
    states: int
    tight: bool = True
    resident: bool = False


def plan_memory(
    config: ModelConfig, candidates: int, shape: tuple[int, int], item_bytes: int, budget: Budget
) -> MemoryPlan:
    """Divide the budget for a sweep over `candidates` and windows of `shape` `(n, T)`, with matrices of
    `item_bytes` a value.

    First comes what a sweep over one window needs, then reading ahead, then more windows, then freed buffers
    that the allocator keeps, then all blocks; what is left is for states. Raises TinyslebError with the least
    that would do.
    """
    count, length = shape
    least = least_bytes(config, candidates, length, item_bytes, budget.resident)
    spare = budget.total - least
    if spare < 0:
        raise TinyslebError(
            f"{format_bytes(budget.total)} of memory is too little for one window of {length} tokens "
            f"in {candidates + SPARE_STREAMS} variants of the model",
            f"at least {format_bytes(rounded_up(least))} would do, or a shorter --window-length",
        )
    ahead = spare >= block_bytes(config, item_bytes)
    spare -= block_bytes(config, item_bytes) if ahead else 0
    window = streams_bytes(config, candidates, length)
    fitting = min(count, 1 + spare // window)
    if fitting < count:
        return MemoryPlan(fitting, ahead, 0)
    spare -= (count - 1) * window
    kept_by_allocator = working_bytes(config, length, item_bytes)
    if spare < kept_by_allocator:
        return MemoryPlan(fitting, ahead, spare)
    spare -= kept_by_allocator
    blocks = config.blocks * block_bytes(config, item_bytes)
    resident = spare >= blocks
    return MemoryPlan(fitting, ahead, spare - blocks if resident else spare, tight=False, resident=resident)


def obey(plan: MemoryPlan) -> None:
    """Let buffers of a megabyte or more go back to the system as they are freed, if the plan is tight.

    glibc keeps freed buffers of up to 32 MiB in a heap. A sweep's buffers grow with its streams, so each is
    too large for the holes that the ones before it left, and the heap becomes up to twice what is in use.
    Fresh pages cost time: a small model's sweep takes half as long again, so that this is only done in need.
    """
    if plan.tight:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def least_bytes(config: ModelConfig, candidates: int, length: int, item_bytes: int, resident: int) -> int:
    """The least a process that already holds `resident` bytes needs for a sweep: one window at a time, the
    next block not read ahead."""
    return resident + working_bytes(config, length, item_bytes) + streams_bytes(config, candidates, length)


def streams_bytes(config: ModelConfig, candidates: int, length: int) -> int:
    """The hidden states of one window of `length` tokens in all variants, in float32."""
    return (candidates + SPARE_STREAMS) * length * config.width * 4


def rounded_up(count: int) -> int:
    """To the next 16 MiB: what a process holds before it begins differs a little from run to run."""
    return -(-count // 2**24) * 2**24


def describe_memory(plan: MemoryPlan, windows: int, sweeps: int, model_bytes: int) -> str:
    """What a plan for so many windows and sweeps a round means, in a line."""
    groups = "all windows" if plan.windows == windows else f"{plan.windows} of {windows} windows"
    times = "once" if sweeps == 1 else f"up to {sweeps} times"
    reading = "are read once, and kept" if plan.resident else f"are read {times} to choose a block"
    ahead = "the next block is read while one computes" if plan.ahead else "one block at a time"
    states = f"; up to {format_bytes(plan.states)} for states kept between rounds" if plan.states else ""
    return (
        f"memory: {groups} fit into a sweep; {format_bytes(model_bytes)} of weights {reading}; "
        f"{ahead}{states}"
    )


def working_bytes(config: ModelConfig, length: int, item_bytes: int) -> int:
    """Memory besides the hidden states, with matrices of `item_bytes` a value: one block, the tensor being
    read, and the larger of one call's activations and the head's chunk, which are never there together."""
    at_work = max(activation_bytes(config, max(length, CALL_TOKENS)), head_bytes(config, item_bytes))
    return block_bytes(config, item_bytes) + reading_bytes(config) + at_work


def block_bytes(config: ModelConfig, item_bytes: int) -> int:
    """One block."""
    return block_parameter_count(config) * item_bytes


def reading_bytes(config: ModelConfig) -> int:
    """A block's largest matrix while it is read: as stored and as float32, each at most 4 bytes a value."""
    return max(shape[0] * shape[-1] for shape in block_shapes(config).values()) * (4 + 4)


def activation_bytes(config: ModelConfig, tokens: int) -> int:
    """What a block holds while `tokens` go through it, all as if in float32."""
    gate_up_and_product = 3 * config.intermediate
    states_and_sums = 2 * config.width
    normed_before_each_half = 2 * config.width
    queries_keys_values_and_mixed = 4 * config.width
    return (
        tokens
        * (gate_up_and_product + states_and_sums + normed_before_each_half + queries_keys_values_and_mixed)
        * 4
    )


def head_bytes(config: ModelConfig, item_bytes: int) -> int:
    """One chunk of the head and what is computed from it: the logits of a chunk of tokens."""
    rows_as_stored_and_as_float32 = VOCABULARY_CHUNK * config.width * (4 + 4)
    rows = VOCABULARY_CHUNK * config.width * item_bytes
    logits_and_their_float32 = 2 * TOKEN_CHUNK * VOCABULARY_CHUNK * 4
    return rows_as_stored_and_as_float32 + rows + logits_and_their_float32


def sampling_bytes(config: ModelConfig, count: int, length: int, item_bytes: int) -> int:
    """What sampling `count` sequences of `length` tokens at once needs, the model included."""
    vocabulary_rows = config.vocab_size * config.width
    blocks = config.blocks * block_bytes(config, item_bytes)
    embedding_and_head = (1 if config.tied else 2) * vocabulary_rows * item_bytes
    embedding_as_read = vocabulary_rows * 4
    caches = 2 * config.blocks * count * config.kv_heads * length * config.head_dim * item_bytes
    logits = count * config.vocab_size * item_bytes
    logits_scaled_their_softmax_and_it_in_groups = DRAWN_AT_ONCE * config.vocab_size * (4 + 4 + 4 + 4)
    activations = activation_bytes(config, count)
    model = blocks + embedding_and_head + embedding_as_read
    return model + caches + activations + logits + logits_scaled_their_softmax_and_it_in_groups


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
