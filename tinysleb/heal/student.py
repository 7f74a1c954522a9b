"""One step of distillation, a block in memory at a time.

The walk up keeps each block's input. At the top, the gradient with respect to the last states has a closed
form. The walk down recomputes a block from its input, with a graph of that block alone, updates it, and hands
the gradient of its input to the block below. Where there is memory, the walk up keeps the graphs, and nothing
is recomputed. Nothing below the first gap is trained, or walked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.config import head_name
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.heal.change import Change, NewChange, copied, merge, parameters
from tinysleb.heal.divergence import divergence
from tinysleb.model.blocks import Block, load_blocks
from tinysleb.model.chunks import VOCABULARY_CHUNK, chunks, windows_in_call
from tinysleb.model.forward import advance, block_forward, embed
from tinysleb.model.head import final_norm, head_norm
from tinysleb.model.norms import rms_norm
from tinysleb.model.positions import Position, block_positions

BETAS = (0.9, 0.95)
"""Of Adam: steps are few, so that the second moment forgets sooner than by default."""


class NotFiniteError(Exception):
    """A gradient or a loss is not a finite number; at `block` of the student, or at the head if None."""

    def __init__(self, block: int | None) -> None:
        super().__init__(f"block {block}" if block is not None else "the head")
        self.block = block


@dataclass(frozen=True)
class Lesson:
    """Windows to learn from: the states before the first block that is trained, float32 `[n, T, width]`, and
    what the original's head is applied to, `[n, T, width]` in the dtype of the matrix products."""

    states: Tensor
    original: Tensor

    def part(self, first: int, last: int) -> Lesson:
        """Some of the windows."""
        return Lesson(self.states[first:last], self.original[first:last])


@torch.no_grad()
def teach(weights: Weights, tokens: Tensor, first: int, compute: Compute, ahead: bool) -> Lesson:
    """What the original makes of windows `[n, T]`, in one walk; the student equals it below `first`."""
    tokens = tokens.to(compute.device)
    positions = block_positions(weights.config, tokens.shape[1], compute.device)
    states = embed(weights, tokens)
    before = states
    blocks = load_blocks(weights, range(weights.config.blocks), compute.dtype, compute.device, ahead)
    for index, block in enumerate(blocks):
        if index == first:
            before = states.clone()
        advance(states, block, weights.config, positions[index])
    return Lesson(before, final_norm(weights, states, compute.dtype))


Passed = dict[int, tuple[Tensor, Tensor | None]]
"""What entered a block, by its index, and what came out of it, where that is kept with its graph."""


class Student:
    """The shortened model: its weights, frozen, and the change that is trained in each block from `first` on,
    which `new_change` makes.

    With `resident`, the trained blocks and the head stay in memory; without, they are read for every step,
    with `ahead` each while the one before computes. With `graphs`, those of all blocks are kept in a step.
    """

    def __init__(
        self,
        weights: Weights,
        first: int,
        compute: Compute,
        new_change: NewChange,
        *,
        resident: bool,
        ahead: bool = False,
        graphs: bool = False,
        seed: int,
    ) -> None:
        self.weights, self.config, self.compute, self.ahead = weights, weights.config, compute, ahead
        self.graphs = graphs
        self.trained = range(first, weights.config.blocks)
        self.norm = head_norm(weights, compute.device)
        self.blocks: dict[int, Block] = {}
        self.head: Tensor | None = None
        generator = torch.Generator().manual_seed(seed)
        self.changes: dict[int, Change] = {}
        for index, block in self._read(self.trained):
            self.changes[index] = new_change(index, block, generator)
            if resident:
                self.blocks[index] = block
        if resident:
            self.head = torch.cat([rows for _, rows in self._head_rows()])
        for change in self.changes.values():
            for factor in parameters(change):
                factor.requires_grad_()
        self.best: dict[int, Change] = {}
        self.optimizers = {index: _adam(change) for index, change in self.changes.items()}

    def keep_best(self) -> None:
        """Keep a copy of the changes as they are, in `best`."""
        self.best = {index: copied(change) for index, change in self.changes.items()}

    def learn(self, lesson: Lesson, rate: float) -> float:
        """One step on a few windows; returns the mean divergence per token before it, in nats.

        Raises NotFiniteError before anything at or below the block that is named has changed.
        """
        passed, last = self._walk_up(lesson.states)
        loss, gradient = self._loss(last.requires_grad_(), lesson.original)
        self._walk_down(passed, gradient, rate)
        return loss

    @torch.no_grad()
    def divergence(self, lesson: Lesson) -> float:
        """The mean divergence per token, in nats. Raises NotFiniteError."""
        total, size = 0.0, windows_in_call(lesson.states.shape[1])
        states = lesson.states.clone()
        for index, block in self._read(self.trained):
            merged = merge(block, self.changes[index], self.compute.dtype)
            advance(states, merged, self.config, self._positions(states)[index])
        for first, last in chunks(len(states), size):
            normed = self._normed(states[first:last])
            total += divergence(
                lesson.original[first:last].flatten(0, 1), normed, self._head, self.config.vocab_size,
                differentiate=False,
            )[0]  # fmt: skip
        if not total < torch.inf:
            raise NotFiniteError(None)
        return total / (states.shape[0] * states.shape[1])

    def _walk_up(self, states: Tensor) -> tuple[Passed, Tensor]:
        """What went through each trained block, and the last states."""
        passed: Passed = {}
        positions = self._positions(states)
        for index, block in self._read(self.trained):
            with torch.set_grad_enabled(self.graphs):
                entered, out = self._through(index, block, states, positions[index])
            passed[index] = entered, out if self.graphs else None
            states = out.detach()
        return passed, states

    def _through(self, index: int, block: Block, states: Tensor, position: Position) -> tuple[Tensor, Tensor]:
        """Send states through a block, with a graph if gradients are enabled; what enters, and what comes."""
        states = states.detach().requires_grad_(torch.is_grad_enabled())
        merged = merge(block, self.changes[index], self.compute.dtype)
        return states, block_forward(states, merged, self.config, position)

    def _loss(self, last: Tensor, original: Tensor) -> tuple[float, Tensor]:
        """The mean divergence per token, and its gradient with respect to the last states."""
        normed = self._normed(last)
        with torch.no_grad():
            total, gradient = divergence(
                original.flatten(0, 1), normed.detach(), self._head, self.config.vocab_size
            )
        (at_last,) = torch.autograd.grad(normed, last, (gradient / len(normed)).to(normed.dtype))
        loss = total / len(normed)
        if not (loss < torch.inf and at_last.isfinite().all()):
            raise NotFiniteError(None)
        return loss, at_last

    def _walk_down(self, passed: Passed, gradient: Tensor, rate: float) -> None:
        positions = self._positions(gradient)
        for index, block in self._read(self.trained[::-1]):
            states, out = passed.pop(index)
            if out is None:
                states, out = self._through(index, block, states, positions[index])
            factors = list(parameters(self.changes[index]))
            gradient, *gradients = torch.autograd.grad(out, [states, *factors], gradient)
            if not all(each.isfinite().all() for each in (gradient, *gradients)):
                raise NotFiniteError(index)
            self._update(index, factors, gradients, rate)

    def _update(
        self, index: int, factors: Sequence[Tensor], gradients: Sequence[Tensor], rate: float
    ) -> None:
        for factor, each in zip(factors, gradients, strict=True):
            factor.grad = each
        optimizer = self.optimizers[index]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    def _normed(self, states: Tensor) -> Tensor:
        """What the head is applied to, `[n · T, width]`."""
        return rms_norm(states, self.norm, self.config.norm_eps).to(self.compute.dtype).flatten(0, 1)

    def _positions(self, states: Tensor) -> list[Position]:
        return block_positions(self.config, states.shape[1], states.device)

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """Blocks in float32, from memory or from the file."""
        if self.blocks and all(index in self.blocks for index in indices):
            yield from ((index, self.blocks[index]) for index in indices)
            return
        blocks = load_blocks(self.weights, indices, torch.float32, self.compute.device, self.ahead)
        yield from zip(indices, blocks, strict=True)

    def _head(self) -> Iterator[tuple[int, Tensor]]:
        if self.head is not None:
            yield 0, self.head
        else:
            yield from self._head_rows()

    def _head_rows(self) -> Iterator[tuple[int, Tensor]]:
        for start, stop in chunks(self.config.vocab_size, VOCABULARY_CHUNK):
            rows = self.weights.tensor(head_name(self.config), start, stop)
            yield start, rows.to(self.compute.device, self.compute.dtype)


def _adam(change: Change) -> torch.optim.Adam:
    """Adam for one block, with moments from the beginning, so that they can be read from a file."""
    optimizer = torch.optim.Adam(parameters(change), betas=BETAS)
    for factor in parameters(change):
        moments = {name: torch.zeros_like(factor) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[factor] = {"step": torch.tensor(0.0), **moments}
    return optimizer
