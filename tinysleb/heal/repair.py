"""A shortened model's repair: the closed form, distillation after it, and storing what they changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.config import block_prefix, shapes_of_block
from tinysleb.checkpoint.weights import Checkpoint, Shortened, TensorInfo, Weights
from tinysleb.compute.compute import Compute, Progress
from tinysleb.heal import walk
from tinysleb.heal.change import Change
from tinysleb.heal.course import Course, Limits, stored_state
from tinysleb.heal.distill import Task, distill
from tinysleb.heal.healed_weights import Healed, HealedTensors, encoding_for, unrounded
from tinysleb.heal.lessons import Lessons
from tinysleb.heal.low_rank import Changed, rank_for, zero_factors
from tinysleb.heal.rounding_walk import Wanted, round_blocks
from tinysleb.heal.step_factors import has_steps, rescale, unit_factors
from tinysleb.heal.walk import HealedMatrix
from tinysleb.plan import Plan

RATE, STEPS_RATE = 2e-3, 3e-3
"""The highest learning rates: of changes of low rank, and of the factors of steps."""
STEPS_PART = 0.25
"""Of what is distilled on, for the steps of what is stored."""


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
        """The lowest block that is changed: the one that has the sublayer below the first gap."""
        return max(min(min(cut) for cut in self.plan.cuts) - 1, 0) // 2

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
        return walk.heal(weights, self.plan.stack, self.fit, self.check, self.compute, healed, progress)

    def solve_and_distil(
        self,
        distilling: Distilling,
        lessons: Lessons,
        healed: HealedTensors,
        judge: Callable[[Weights], Sequence[float]],
    ) -> tuple[list[HealedMatrix], dict[str, Any]]:
        """Both, and what a plan is to say of the latter, with what `judge` says of the former. The closed
        form is left out for families that norm what a block adds.

        Where matrices are stored in few bits, the last part of the text serves to train their steps.
        """
        steps = {name: type_ for name, type_ in self._stored_types().items() if has_steps(type_)}
        last = STEPS_PART if steps else 0.0
        with tempfile.TemporaryDirectory(dir=healed.folder) as folder:
            solved, matrices = HealedTensors(Path(folder)), list[HealedMatrix]()
            if not self.weights.config.architecture.post_norm:
                matrices = self._solve(unrounded(self.weights), solved)
            student, width = Healed(self.shortened, solved), self.weights.config.width
            solved_losses = list(judge(student))
            task = Task(
                self.weights, student, self.first, zero_factors(width), lessons.windows, self.check,
                self.seed, RATE, self.identity, lessons.bytes_to_write,
            )  # fmt: skip
            changes, course = self._distil(task, distilling.limits.part(1 - last), distilling.state)
            self._store(Changed(student, changes), self._distilled | set(solved.tensors), healed)
        report = {"rank": rank_for(width), "rate": RATE, "solved": solved_losses} | _told(course)
        if steps:
            self.say("distilling what is stored: the steps of its types")
            seen = course.tokens // task.length
            task = replace(
                task,
                shortened=Healed(self.shortened, healed),
                new_change=unit_factors(steps, width),
                windows=lambda start, count: lessons.windows(seen + start, count),
                rate=STEPS_RATE,
                identity=f"{self.identity} as stored",
            )
            state = None if distilling.state is None else stored_state(distilling.state)
            changes, course = self._distil(task, distilling.limits.part(last), state)
            rescale(healed, changes)
            report["steps"] = {"rate": STEPS_RATE} | _told(course)
        return matrices, report

    def _distil(self, task: Task, limits: Limits, state: Path | None) -> tuple[dict[int, Change], Course]:
        progress = partial(self.progress, "distilling")
        return distill(task, limits, self.compute.between_stages(), self.say, progress, state)

    @property
    def _distilled(self) -> set[str]:
        """The matrices that distillation changes."""
        config = self.shortened.config
        return {
            block_prefix(index) + name
            for index in range(self.first, config.blocks)
            for name, shape in shapes_of_block(config, index).items()
            if len(shape) == 2
        }

    def _stored_types(self) -> dict[str, GGMLQuantizationType]:
        """The types that the matrices are stored in which distillation changes."""
        return {name: self._type(name) for name in self._distilled}

    def _type(self, name: str) -> GGMLQuantizationType:
        """The type to store a tensor in that was changed."""
        info, other = self.shortened.tensors[name], self._other_type(name)
        return encoding_for(info.type, info.shape[-1]) if other is None else other

    def _other_type(self, name: str) -> GGMLQuantizationType | None:
        """The type that a tensor is to have; None for the one that it has."""
        info = self.shortened.tensors[name]
        type_ = None if self.types is None else self.types(name, info)
        return None if type_ is None or type_.name == info.type else type_

    def _store(self, repaired: Weights, changed: Collection[str], healed: HealedTensors) -> None:
        """Encode what was changed, and what is to have another type."""

        def wanted(name: str, _info: TensorInfo) -> GGMLQuantizationType | None:
            return self._type(name) if name in changed else self._other_type(name)

        compute, progress = self.compute.between_stages(), partial(self.progress, "rounding")
        blocks = round_blocks(repaired, wanted, self.fit, compute, healed, progress)
        names = ", ".join(sorted({type_ for block in blocks for type_ in block.types}))
        error = sum(block.error for block in blocks) / max(1, len(blocks))
        self.say(f"{len(blocks)} blocks stored as {names}, which changes what they compute by {error:.2%}")


def _told(course: Course) -> dict[str, Any]:
    return {"tokens": course.tokens, "divergence": course.losses}
