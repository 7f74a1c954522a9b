"""Healing: one walk up two stacks, the original model and the shortened one, repairing the latter on the way.

Leaving blocks out shifts the hidden states. For each kept block from the first gap on, `mlp.down_proj`
becomes the ridge solution that brings the shortened model's states nearest to the original's, just before the
next kept block. Rows are weighted by the inverse mean square of the original's state. Nothing is trained.
Related: ReplaceMe (arXiv 2505.02819), which fits one linear map at one cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import ModelConfig, block_parameter_count, block_prefix
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import rounded_up, working_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import Bytes
from tinysleb.formats.tensor_types import tensor_type
from tinysleb.formats.units import format_bytes
from tinysleb.heal.healed_weights import HEALED, HealedTensors, encoding_for
from tinysleb.heal.ridge import OUTPUTS, NormalEquations, solve
from tinysleb.heal.rounding import encode_fed_forward
from tinysleb.model.blocks import Block, load_blocks
from tinysleb.model.chunks import CALL_TOKENS, chunks
from tinysleb.model.forward import Position, advance, block_positions, down_inputs, embed, linear
from tinysleb.model.streams import FileStream, Stream

RIDGE, STEP = 0.07, 0.5
"""How strongly the solution is pulled to the old weights, and how far to go towards it: half of the way. The
blocks above make up for the rest, which serves other kinds of text better than a stronger pull and all of the
way."""


@dataclass(frozen=True)
class HealedBlock:
    """What healing did to a block, by its original index.

    Errors are mean squares, relative to the original's states, on windows held back from the fit: with the
    old weights, with the solution, and with the solution as stored (in `type`). `healed` is False if the old
    weights were as good, and stayed.
    """

    block: int
    before: float
    after: float
    stored: float
    type: str
    healed: bool


@dataclass(frozen=True)
class HealingMemory:
    """How healing uses its memory.

    `streams`: whether hidden states are in memory, or in files; `ahead`: whether the next block is read while
    one computes; `direct`: whether equations are solved by a factor in float64; `inputs`: whether what a
    block computed for the equations is kept until it is used again.
    """

    streams: bool
    ahead: bool
    direct: bool
    inputs: bool


def plan_healing_memory(config: ModelConfig, shape: tuple[int, int], compute: Compute) -> HealingMemory:
    """Divide the budget for windows of `shape` `(n, T)`. Raises TinyslebError with the least that would do.

    Two blocks (the one that is healed, the one above), one call's activations and the normal equations are
    always counted. What is left goes to two streams, a third block, a factor in float64, and the inputs, in
    this order, each if it fits.
    """
    tokens, item = shape[0] * shape[1], compute.dtype.itemsize
    wide, narrow = config.intermediate, config.width
    block = block_parameter_count(config) * item
    gram = wide * wide * 4
    matrices = 3 * wide * narrow * 4  # the right-hand side, the old weights, the solution
    slices = 4 * wide * min(narrow, OUTPUTS) * 4  # while the solution is refined
    equations = gram + matrices + slices
    least = compute.memory.resident + working_bytes(config, shape[1], item) + block + equations
    left = compute.memory.total - least
    if left < 0:
        raise TinyslebError(
            f"{format_bytes(compute.memory.total)} of memory is too little for healing",
            f"at least {format_bytes(rounded_up(least))} would do (--memory)",
        )

    def grant(needed: int) -> bool:
        nonlocal left
        fits = needed <= left
        left -= needed if fits else 0
        return fits

    return HealingMemory(
        streams=grant(2 * tokens * narrow * 4),
        ahead=grant(block),
        direct=grant(4 * equations),  # the matrix, its factor and both sides again, in float64
        inputs=grant(tokens * (wide * item + narrow * 4)),
    )


@torch.inference_mode()
def heal(
    weights: Weights,
    kept: Sequence[int],
    fit: Tensor,
    check: Tensor,
    compute: Compute,
    healed: HealedTensors,
    progress: Callable[[float], None],
) -> list[HealedBlock]:
    """Heal the model made of the blocks `kept` (ascending) of `weights`, storing tensors in `healed`.

    `fit` `[n, T]` are the windows to solve for, `check` `[m, T]` those held back. Blocks are read one after
    the other. Raises TinyslebError if there is too little memory, if a family's feed-forward is not the
    last thing added to the states, or if a number is not finite; then `healed` is of no use.
    """
    config = weights.config
    check_healable(config, weights)
    tokens = torch.cat([fit, check]).to(compute.device)
    walk = _Walk(weights, tokens, len(fit), compute, healed)
    first_gap = next((index for index in range(config.blocks) if index not in kept), config.blocks)
    blocks = load_blocks(weights, range(config.blocks), compute.dtype, compute.device, walk.memory.ahead)
    results: list[HealedBlock] = []
    pending: tuple[int, Block] | None = None
    for index in range(config.blocks):
        block = next(blocks)
        if index == max(first_gap - 1, 0):
            walk.fork()
        if index in kept:
            pending = (index, block)
        advance(walk.teacher, block, config, walk.positions[index])
        del block
        if pending is not None and walk.forked and (index + 1 in kept or index + 1 == config.blocks):
            results.append(walk.repair(*pending, name=block_prefix(kept.index(pending[0])) + HEALED))
            pending = None
        progress((index + 1) / config.blocks)
    return results


def check_healable(config: ModelConfig, weights: Weights) -> None:
    """Raise TinyslebError for a family whose `mlp.down_proj` is followed by a norm."""
    if config.architecture.post_norm:
        raise TinyslebError(
            f"{weights.path}: {config.architecture.huggingface} norms what a block adds, and cannot be healed"
        )


class _Walk:
    """The states of both stacks, `[n + m, T, width]`; the same ones until the first gap is near."""

    def __init__(
        self, weights: Weights, tokens: Tensor, fitted: int, compute: Compute, healed: HealedTensors
    ) -> None:
        self.weights, self.config, self.fitted, self.healed = weights, weights.config, fitted, healed
        self.memory = plan_healing_memory(self.config, (tokens.shape[0], tokens.shape[1]), compute)
        self.positions = block_positions(self.config, tokens.shape[1], tokens.device)
        size = max(1, CALL_TOKENS // tokens.shape[1])
        self.teacher: Stream
        if self.memory.streams:
            self.teacher = embed(weights, tokens)
        else:
            self.teacher = FileStream(
                healed.folder / "teacher", (*tokens.shape, self.config.width), tokens.device
            )
            for first, last in chunks(len(tokens), size):
                self.teacher[first:last] = embed(weights, tokens[first:last])
        self.student = self.teacher
        self.fit_groups = list(chunks(fitted, size))
        rest = chunks(len(tokens) - fitted, size)
        self.check_groups = [(fitted + first, fitted + last) for first, last in rest]

    @property
    def forked(self) -> bool:
        """True once the two models' states differ."""
        return self.student is not self.teacher

    def fork(self) -> None:
        """Give the shortened model states of its own."""
        if isinstance(self.teacher, FileStream):
            self.student = self.teacher.copied_to(self.healed.folder / "student")
        else:
            self.student = self.teacher.clone()

    def repair(self, index: int, block: Block, name: str) -> HealedBlock:
        """Solve for a block's last product, store it, and send the shortened model's states through."""
        position, old = self.positions[index], block[HEALED].float()
        equations = NormalEquations(old.shape[1], old.shape[0], old.device)
        inputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for group in self.fit_groups:
            states, x = self._inputs(group, block, position)
            missing, weight = self._missing(group, states, block)
            equations.add(x.flatten(0, 1), missing, weight)
            if self.memory.inputs:
                inputs[group] = (states, x)
        if not equations.finite:
            raise not_finite(self.weights, f"what block {index} computes")
        nearest, factor = solve(equations, old, RIDGE, direct=self.memory.direct)
        solution = old + STEP * (nearest - old)
        type_ = encoding_for(self.weights.tensors[block_prefix(index) + HEALED].type, solution.shape[1])
        if factor is None or not tensor_type(type_.name).few_bits:
            data = encode(solution, type_)
        else:
            data = encode_fed_forward(solution, factor, type_)
        del equations, factor
        return self._finish(index, block, position, name, solution, (data, type_), inputs)

    def _finish(
        self,
        index: int,
        block: Block,
        position: Position,
        name: str,
        solution: Tensor,
        encoded: tuple[Bytes, GGMLQuantizationType],
        inputs: dict[tuple[int, int], tuple[Tensor, Tensor]],
    ) -> HealedBlock:
        data, type_ = encoded
        stored = decode(data, type_).to(solution.device)
        before, after, as_stored = self._errors(block, position, (block[HEALED].float(), solution, stored))
        better = as_stored < before
        if better:
            self.healed.add(name, solution.shape, data, type_)
            block = block | {HEALED: stored.to(block[HEALED].dtype)}
        for group in (*self.fit_groups, *self.check_groups):
            states, x = inputs.pop(group) if group in inputs else self._inputs(group, block, position)
            added = linear(x, block, "mlp.down_proj")
            self.student[slice(*group)] = states + added * self.config.residual_scale
        return HealedBlock(index, before, after, as_stored, type_.name, better)

    def _inputs(self, group: tuple[int, int], block: Block, position: Position) -> tuple[Tensor, Tensor]:
        return down_inputs(self.student[slice(*group)], block, self.config, position)

    def _missing(self, group: tuple[int, int], states: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """What the product should add to reach the original's states, `[rows, width]`; rows' weights."""
        target = self.teacher[slice(*group)]
        missing = (target - states) / self.config.residual_scale
        if (bias := block.get("mlp.down_proj.bias")) is not None:
            missing -= bias.float()
        weight = target.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
        return missing.flatten(0, 1), weight.flatten()

    def _errors(self, block: Block, position: Position, weights: Sequence[Tensor]) -> list[float]:
        """The relative error with each of `weights` on the windows held back."""
        totals, rows = [0.0] * len(weights), 0
        for group in self.check_groups:
            states, x = self._inputs(group, block, position)
            missing, weight = self._missing(group, states, block)
            x = x.flatten(0, 1).float()
            rows += len(x)
            for slot, each in enumerate(weights):
                square = (missing - F.linear(x, each)).square().mean(1) * weight
                totals[slot] += square.double().sum().item()
        scale = self.config.residual_scale**2
        return [scale * total / rows for total in totals]
