"""A shortened model's repair: the closed form, distillation after it, and storing what they changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.config import block_prefix, block_shapes
from tinysleb.checkpoint.weights import Checkpoint, Shortened, TensorInfo, Weights
from tinysleb.compute.compute import Compute, Progress
from tinysleb.heal import walk
from tinysleb.heal.course import Limits
from tinysleb.heal.distill import RATE, Task, distill
from tinysleb.heal.healed_weights import Healed, HealedTensors, encoding_for, unrounded
from tinysleb.heal.lessons import Lessons
from tinysleb.heal.low_rank import rank_for
from tinysleb.heal.rounding_walk import Wanted, round_blocks
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
    `identity` tells one repair from another. `types`: those to store the matrices of all blocks in; None for
    the types that they have."""

    weights: Checkpoint
    plan: Plan
    fit: Tensor
    check: Tensor
    seed: int
    identity: str
    compute: Compute
    say: Callable[[str], None]
    progress: Progress
    types: Wanted | None = None

    @property
    def shortened(self) -> Shortened:
        """The model to repair."""
        return Shortened(self.weights, self.plan.kept)

    @property
    def first(self) -> int:
        """The lowest block that is changed: the one below the first gap."""
        return max(min(self.plan.removed) - 1, 0)

    def solve(self, healed: HealedTensors) -> list[HealedMatrix]:
        """The closed form, its tensors in `healed`, as they are to be stored."""
        if self.types is None:
            return self._solve(self.weights, healed)
        with tempfile.TemporaryDirectory(dir=healed.folder) as folder:
            solved = HealedTensors(Path(folder))
            matrices = self._solve(unrounded(self.weights), solved)
            self._store(Healed(self.shortened, solved), solved.tensors, healed)
        return matrices

    def _solve(self, weights: Weights, healed: HealedTensors) -> list[HealedMatrix]:
        """The closed form, in the types that `weights` reports."""
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
                matrices = self._solve(unrounded(self.weights), solved)
            task = Task(
                self.weights, Healed(self.shortened, solved), self.first, lessons.windows, self.check,
                self.seed, self.identity, lessons.bytes_to_write,
            )  # fmt: skip
            progress = partial(self.progress, "distilling")
            compute = self.compute.between_stages()
            distilled, course = distill(
                task, distilling.limits, compute, self.say, progress, distilling.state
            )
            self._store(distilled, self._distilled | set(solved.tensors), healed)
        rank = rank_for(self.weights.config.width)
        return matrices, {"rank": rank, "rate": RATE, "tokens": course.tokens, "divergence": course.losses}

    @property
    def _distilled(self) -> set[str]:
        """The matrices that distillation changes."""
        config = self.shortened.config
        matrices = [name for name, shape in block_shapes(config).items() if len(shape) == 2]
        return {block_prefix(i) + name for i in range(self.first, config.blocks) for name in matrices}

    def _store(self, repaired: Weights, changed: Collection[str], healed: HealedTensors) -> None:
        """Encode what was changed, and what is to have another type."""
        before, types = self.shortened.tensors, self.types

        def wanted(name: str, info: TensorInfo) -> GGMLQuantizationType | None:
            type_ = None if types is None else types(name, info)
            if type_ is None or type_.name == before[name].type:
                return encoding_for(before[name].type, info.shape[-1]) if name in changed else None
            return type_

        compute, progress = self.compute.between_stages(), partial(self.progress, "rounding")
        blocks = round_blocks(repaired, wanted, self.fit, compute, healed, progress)
        names = ", ".join(sorted({type_ for block in blocks for type_ in block.types}))
        error = sum(block.error for block in blocks) / max(1, len(blocks))
        self.say(f"{len(blocks)} blocks stored as {names}, which changes what they compute by {error:.2%}")
