"""A shortened model's repair: the closed form, distillation after it, and storing what they changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tinysleb.checkpoint.config import block_prefix, block_shapes
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.compute.compute import Compute, Progress
from tinysleb.heal import walk
from tinysleb.heal.course import Limits
from tinysleb.heal.distill import RATE, Task, distill
from tinysleb.heal.healed_weights import Healed, HealedTensors, encoding_for, unrounded
from tinysleb.heal.lessons import Lessons
from tinysleb.heal.low_rank import rank_for
from tinysleb.heal.walk import HealedMatrix
from tinysleb.plan import Plan


@dataclass(frozen=True)
class Distilling:
    """That distillation follows the closed form: how long, and the file it leaves its state in, if any."""

    limits: Limits
    state: Path | None = None


@dataclass(frozen=True)
class Repair:
    """What to repair, on what: `fit` `[n, T]` are the windows to solve for, `check` `[m, T]` those held back;
    `identity` tells one repair from another."""

    weights: Checkpoint
    plan: Plan
    fit: Tensor
    check: Tensor
    seed: int
    identity: str
    compute: Compute
    say: Callable[[str], None]
    progress: Progress

    @property
    def shortened(self) -> Shortened:
        """The model to repair."""
        return Shortened(self.weights, self.plan.kept)

    @property
    def first(self) -> int:
        """The lowest block that is changed: the one below the first gap."""
        return max(min(self.plan.removed) - 1, 0)

    def solve(self, weights: Weights, healed: HealedTensors) -> list[HealedMatrix]:
        """The closed form, its tensors in `healed`, in the types that `weights` reports."""
        progress = partial(self.progress, "healing")
        return walk.heal(weights, self.plan.kept, self.fit, self.check, self.compute, healed, progress)

    def solve_and_distil(
        self, distilling: Distilling, lessons: Lessons, healed: HealedTensors
    ) -> tuple[list[HealedMatrix], dict[str, Any]]:
        """Both, and what a plan is to say of the latter. The closed form is left out for families that norm
        what a block adds."""
        with tempfile.TemporaryDirectory(dir=healed.folder) as folder:
            solved, matrices = HealedTensors(Path(folder)), list[HealedMatrix]()
            if not self.weights.config.architecture.post_norm:
                matrices = self.solve(unrounded(self.weights), solved)
            task = Task(
                self.weights, Healed(self.shortened, solved), self.first, lessons.windows, self.check,
                self.seed, self.identity, lessons.bytes_to_write,
            )  # fmt: skip
            progress = partial(self.progress, "distilling")
            compute = self.compute.between_stages()
            distilled, course = distill(
                task, distilling.limits, compute, self.say, progress, distilling.state
            )
            self._store(distilled, solved.tensors, healed)
        rank = rank_for(self.weights.config.width)
        return matrices, {"rank": rank, "rate": RATE, "tokens": course.tokens, "divergence": course.losses}

    def _store(self, distilled: Weights, solved: Collection[str], healed: HealedTensors) -> None:
        """Encode all that was changed, in the types of the shortened model."""
        shortened = self.shortened
        changed = {
            block_prefix(index) + name
            for index in range(self.first, shortened.config.blocks)
            for name, shape in block_shapes(shortened.config).items()
            if len(shape) == 2
        } | set(solved)

        for name in sorted(changed):
            info = shortened.tensors[name]
            type_ = encoding_for(info.type, info.shape[-1])
            healed.add(name, info.shape, encode(distilled.tensor(name), type_), type_)
