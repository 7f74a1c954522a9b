"""Distillation: gradient descent on KL(original ‖ student) over the vocabulary, after the closed form.

Text comes in portions. The original walks through a portion once; the student learns from it in steps of a
fixed size, whatever the memory. The learning rate rises, then falls to zero, over the tokens or the time that
are given; the changes with the lowest loss on windows held back are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig, block_parameter_count, block_shapes
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Allowance, activation_bytes, give_back_freed, reading_bytes
from tinysleb.heal.change import Change, NewChange
from tinysleb.heal.course import Course, Limits
from tinysleb.heal.distilling_state import load_state, save_state
from tinysleb.heal.low_rank import factor_count
from tinysleb.heal.student import Lesson, NotFiniteError, Student, teach
from tinysleb.model.chunks import (
    DISTRIBUTIONS_AT_ONCE,
    TOKEN_CHUNK,
    VOCABULARY_CHUNK,
    chunks,
    windows_in_call,
)  # fmt: skip

WARM_UP = 0.1
"""The part of the budget in which the learning rate rises."""
PORTION_STEPS = 16
"""Steps between two looks at the windows held back, where memory allows."""


@dataclass(frozen=True)
class DistillingMemory:
    """How distillation uses its memory: steps in a portion; whether the trained blocks and the head stay in
    memory; whether the next block is read while one computes; whether the graphs of all blocks are kept."""

    steps: int
    resident: bool
    ahead: bool
    graphs: bool


def plan_distilling_memory(
    config: ModelConfig, trained: int, length: int, compute: Compute, writing: int = 0
) -> DistillingMemory:
    """Divide the budget for training the uppermost `trained` blocks of a model on windows of `length` tokens.

    `writing`: the bytes that making text takes between portions. Raises TinyslebError with the least that
    would do.
    """
    item, width = compute.dtype.itemsize, config.width
    tokens = windows_in_call(length) * length
    weights = block_parameter_count(config)
    changes_moments_and_best = 4 * trained * factor_count(config) * 4
    inputs_on_the_way_up = trained * tokens * width * 4
    largest = max(prod(shape) for shape in block_shapes(config).values())
    changed_and_gradients_of_one = largest * (4 + 4 + item)
    block_and_merged = weights * (4 + item) + changed_and_gradients_of_one + 2 * reading_bytes(config)
    graph = 3 * activation_bytes(config, tokens) + 2 * config.heads * tokens * length * item
    logits = 2 * min(TOKEN_CHUNK, tokens) * config.vocab_size * item
    distributions = 4 * DISTRIBUTIONS_AT_ONCE * config.vocab_size * 4
    head_rows = VOCABULARY_CHUNK * width * (4 + 4 + item)
    step = max(block_and_merged + graph, logits + distributions + head_rows)
    lesson = tokens * width * (4 + item)
    learning = inputs_on_the_way_up + step + 2 * lesson
    least = changes_moments_and_best + max(learning, writing)
    left = Allowance(compute.memory, least, "is too little for distillation")
    unused_while_learning = max(learning, writing) - learning
    steps = min(PORTION_STEPS, 1 + (left.bytes + unused_while_learning) // (2 * lesson))
    left.grant(max(0, (steps - 1) * lesson - unused_while_learning))
    resident = left.grant(trained * weights * 4 + config.vocab_size * width * item)
    ahead = not resident and left.grant(weights * 4)
    graphs = left.grant((trained - 1) * (graph + weights * item))
    return DistillingMemory(steps, resident, ahead, graphs)


@dataclass(frozen=True)
class Task:
    """What to distil: the original, the student's weights, its first block that is trained, what is trained
    in each, and the text.

    `windows(start, count)` gives `count` windows `[count, T]`, after the `start` first; `check` `[m, T]` are
    held back. `rate` is the highest learning rate, `identity` tells one task from another, and `writing` is
    how many bytes `windows` takes meanwhile.
    """

    original: Weights
    shortened: Weights
    first: int
    new_change: NewChange
    windows: Callable[[int, int], Tensor]
    check: Tensor
    seed: int
    rate: float
    identity: str = ""
    writing: int = 0

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.check.shape[1]


def distill(
    task: Task,
    limits: Limits,
    compute: Compute,
    say: Callable[[str], None] = lambda _line: None,
    progress: Callable[[float], None] = lambda _done: None,
    state: Path | None = None,
) -> tuple[dict[int, Change], Course]:
    """Changes to the student's blocks, by their indices, so that it predicts what the original does.

    It continues from the file `state`, if there is one, and leaves there how far it has come after every
    portion. If a number is not finite, it ends with the best so far. Raises TinyslebError if
    there is too little memory, or if `state` is of another distillation.
    """
    distillation = _Distillation(task, limits, compute)
    if state is not None and state.exists():
        distillation.course = load_state(state, distillation.student, task.identity)
        say(f"distillation continues after {distillation.course.tokens} tokens")
    try:
        distillation.learn_all(say, progress, state)
    except NotFiniteError as error:
        if not distillation.course.losses:
            raise not_finite(task.shortened, "the divergence from the original") from error
        say(f"warning: distillation ended with the best so far, since {error} is not finite")
    return distillation.student.best, distillation.course


class _Distillation:
    """A student on its course, and what the original makes of the windows held back."""

    def __init__(self, task: Task, limits: Limits, compute: Compute) -> None:
        self.task, self.limits, self.compute, self.course = task, limits, compute, Course()
        config = task.shortened.config
        self.memory = plan_distilling_memory(
            config, config.blocks - task.first, task.length, compute, task.writing
        )
        self.student = Student(
            task.shortened, task.first, compute, task.new_change,
            resident=self.memory.resident, ahead=self.memory.ahead, graphs=self.memory.graphs, seed=task.seed,
        )  # fmt: skip
        self.held_back = self._teach(task.check)

    def learn_all(
        self, say: Callable[[str], None], progress: Callable[[float], None], state: Path | None
    ) -> None:
        """Portion after portion, each with a look at the windows held back, until a limit is reached."""
        course = self.course
        begin = time.monotonic() - course.seconds
        progress(self.limits.done(course))
        if not course.losses:
            self._look()
        while self.limits.done(course) < 1:
            for _step in self._learn_portion():
                course.seconds = time.monotonic() - begin
                progress(self.limits.done(course))
            self._look()
            say(f"distilled on {course.tokens} tokens: {course.losses[-1][1]:.4f} nats from the original")
            if state is not None:
                save_state(state, self.student, course, self.task.identity)
            give_back_freed()

    def _learn_portion(self) -> Iterator[None]:
        """Learn from the next portion, a step at a time."""
        task, course = self.task, self.course
        size = windows_in_call(task.length)
        left = -(-(self.limits.tokens - course.tokens) // (size * task.length))
        windows = task.windows(course.tokens // task.length, min(self.memory.steps, left) * size)
        lesson = self._teach(windows)
        for first, last in chunks(len(windows), size):
            done = self.limits.done(course)
            if done >= 1:
                break
            rate = task.rate * min(1.0, (done + 1e-3) / WARM_UP, (1 - done) / (1 - WARM_UP))
            self.student.learn(lesson.part(first, last), rate)
            course.tokens += (last - first) * task.length
            yield

    def _look(self) -> None:
        """Measure the loss, and keep the student's changes if it is the best so far."""
        loss = self.student.divergence(self.held_back)
        self.course.losses.append((self.course.tokens, loss))
        if self.course.best == self.course.losses[-1]:
            self.student.keep_best()

    def _teach(self, windows: Tensor) -> Lesson:
        return teach(self.task.original, windows, self.task.first, self.compute, self.memory.ahead)
