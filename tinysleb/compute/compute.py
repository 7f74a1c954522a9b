"""Where and how to compute, as one value that every stage gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.device import choose_device, choose_dtype, make_current, measure_budget
from tinysleb.compute.distributed import Group, local_rank
from tinysleb.compute.memory import Budget, MemoryPlan, plan_memory
from tinysleb.formats.units import parse_bytes

DEFAULT_MEMORY = "4GiB"
ALONE = Group()
"""One process that shares its work with nobody."""
Say = Callable[[str], None]
"""Called with a message."""
Progress = Callable[[str, float], None]
"""Called with a label and the fraction done, 0 to 1."""


@dataclass(frozen=True)
class Compute:
    """Where and how to compute: device, dtype of the matrix products, memory, the processes that share."""

    device: torch.device
    dtype: torch.dtype
    memory: Budget
    group: Group = ALONE

    def memory_plan(
        self, weights: Weights, candidates: int, count: int, length: int, held: int = 0
    ) -> MemoryPlan:
        """How sweeps over `candidates` on `count` windows of `length` tokens use the memory, of which
        `held` bytes are taken by states."""
        left = replace(self.memory, total=self.memory.total - held)
        return plan_memory(weights.config, candidates, (count, length), self.dtype.itemsize, left)

    def between_stages(self) -> Compute:
        """The same after a stage has freed its memory: what the process holds is measured anew."""
        return replace(self, memory=measure_budget(self.device, self.memory.total))


def compute_on(
    device_name: str = "auto",
    dtype_name: str = "auto",
    memory: str = DEFAULT_MEMORY,
    group: Group = ALONE,
) -> Compute:
    """Device, dtype and memory by their names; what the process holds is measured here."""
    total, device = parse_bytes(memory), choose_device(device_name, local_rank())
    make_current(device)
    return Compute(device, choose_dtype(dtype_name, device), measure_budget(device, total), group)


def scaled(progress: Callable[[float], None], start: float, stop: float) -> Callable[[float], None]:
    """The progress of a part of the work: its 0 to 1 is `start` to `stop` of the whole."""
    return lambda done: progress(start + done * (stop - start))
