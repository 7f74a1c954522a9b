"""Healing: one walk up two stacks, the original model and the shortened one, repairing the latter on the way.

Leaving sublayers out shifts the hidden states. From the first gap on, the last matrix of each sublayer that
is kept becomes the ridge solution that brings the shortened model's states nearest to the original's just
before the next one that is kept. Rows are weighted by the inverse mean square of the original's state. Above
a gap, states are smaller than the original's; since norms come first, it is as good to shrink what the blocks
above add to them. Nothing is trained. Related: ReplaceMe (arXiv 2505.02819), which fits one linear map at one
cut; RCPU, which solves for both matrices in turn; Prune&Comp (arXiv 2507.18212), which scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import DOWN, OUT, ModelConfig, block_parameter_count, block_prefix
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Allowance, working_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.tensor_types import tensor_type
from tinysleb.heal.healed_weights import HealedTensors, encoding_for
from tinysleb.heal.ridge import OUTPUTS, NormalEquations, solve
from tinysleb.heal.rounding import encode_fed_forward
from tinysleb.model.blocks import Block, load_blocks
from tinysleb.model.chunks import chunks, windows_in_call
from tinysleb.model.forward import advance_half, down_inputs, embed_stream, out_inputs, product
from tinysleb.model.positions import block_positions
from tinysleb.model.streams import FileStream
from tinysleb.sublayers import block_cut, pairs_of, sublayers_of

RIDGE, STEP = 0.07, 0.5
"""How strongly the solution is pulled to the old weights, and how far to go towards it: half of the way. The
blocks above make up for the rest, which serves other kinds of text better than a stronger pull and all of the
way."""
Group = tuple[int, int]
"""Bounds of the windows that are computed at a time."""


@dataclass(frozen=True)
class HealedMatrix:
    """What healing did to a matrix of a block, given by its original index.

    Errors are mean squares, relative to the original's states, on windows held back from the fit: with the
    old weights, with the solution, and with the solution as stored (in `type`). `healed` is False if the old
    weights were as good, and stayed.
    """

    block: int
    matrix: str
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
    mixed, narrow = config.heads * config.head_dim, config.width
    wide = max(config.intermediate, mixed)
    block = block_parameter_count(config) * item
    scaled = narrow * (config.intermediate + mixed) * item  # copies of the two matrices
    gram = wide * wide * 4
    matrices = 3 * wide * narrow * 4  # the right-hand side, the old weights, the solution
    slices = 4 * wide * min(narrow, OUTPUTS) * 4  # while the solution is refined
    equations = gram + matrices + slices
    least = working_bytes(config, shape[1], item) + block + scaled + equations
    left = Allowance(compute.memory, least, "is too little for healing")
    return HealingMemory(
        streams=left.grant(2 * tokens * narrow * 4),
        ahead=left.grant(block),
        direct=left.grant(4 * equations),  # the matrix, its factor and both sides again, in float64
        inputs=left.grant(tokens * wide * item),
    )


@torch.inference_mode()
def heal(
    weights: Weights,
    stack: Sequence[int],
    fit: Tensor,
    check: Tensor,
    compute: Compute,
    healed: HealedTensors,
    progress: Callable[[float], None],
) -> list[HealedMatrix]:
    """Heal the model made of the sublayers `stack` (ascending) of `weights`, storing tensors in `healed`.

    `fit` `[n, T]` are the windows to solve for, `check` `[m, T]` those held back. Blocks are read one after
    the other. Raises TinyslebError if there is too little memory, if a family's feed-forward is not the
    last thing added to the states, or if a number is not finite; then `healed` is of no use.
    """
    config, top = weights.config, 2 * weights.config.blocks
    check_healable(config, weights)
    tokens = torch.cat([fit, check]).to(compute.device)
    walk = _Walk(weights, tokens, len(fit), compute, healed)
    first_gap = min(set(range(top)) - set(stack), default=top)
    prefixes = {
        sublayer: block_prefix(index)
        for index, pair in enumerate(pairs_of(stack))
        for sublayer in sublayers_of([pair])
    }
    blocks = load_blocks(weights, range(config.blocks), compute.dtype, compute.device, walk.memory.ahead)
    results: list[HealedMatrix] = []
    pending: _Student | None = None
    for index in range(config.blocks):
        block = next(blocks)
        for sublayer in block_cut(index):
            if sublayer == max(first_gap - 1, 0):
                walk.fork()
            if sublayer in prefixes and walk.forked:
                if sublayer > first_gap and sublayer - 1 not in prefixes:
                    walk.rescale()
                pending = walk.enter(sublayer, block, prefixes[sublayer])
            advance_half(walk.teacher, block, config, walk.positions[index], sublayer)
            if sublayer % 2:
                del block
            if pending is not None and (sublayer + 1 in prefixes or sublayer + 1 == top):
                results.append(walk.heal(pending))
                pending = None
        progress((index + 1) / config.blocks)
    return results


def check_healable(config: ModelConfig, weights: Weights) -> None:
    """Raise TinyslebError for a family whose `mlp.down_proj` is followed by a norm."""
    if config.architecture.post_norm:
        raise TinyslebError(
            f"{weights.path}: {config.architecture.huggingface} norms what a block adds, and cannot be healed"
        )


@dataclass
class _Student:
    """A kept sublayer as it is being healed: its block's weights, and its block's prefix in the new model."""

    sublayer: int
    block: Block
    prefix: str

    @property
    def index(self) -> int:
        """The block that it belonged to."""
        return self.sublayer // 2

    @property
    def product(self) -> str:
        """Its last product."""
        return DOWN if self.sublayer % 2 else OUT


class _Walk:
    """The states of both stacks, `[n + m, T, width]`; the same ones until the first gap is near.

    The student's are to be the teacher's, divided by `scale`.
    """

    def __init__(
        self, weights: Weights, tokens: Tensor, fitted: int, compute: Compute, healed: HealedTensors
    ) -> None:
        self.weights, self.config, self.healed, self.scale = weights, weights.config, healed, 1.0
        self.memory = plan_healing_memory(self.config, (tokens.shape[0], tokens.shape[1]), compute)
        self.positions = block_positions(self.config, tokens.shape[1], tokens.device)
        size = windows_in_call(tokens.shape[1])
        file = None if self.memory.streams else healed.folder / "teacher"
        self.teacher = embed_stream(weights, tokens, file)
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

    def rescale(self) -> None:
        """Let `scale` be how much larger the teacher's states are than the student's."""
        total, rows = 0.0, 0
        for group in self.fit_groups:
            squares = self.student[slice(*group)].square().mean(-1) * _weight(self.teacher[slice(*group)])
            total, rows = total + squares.double().sum().item(), rows + squares.numel()
        self.scale = math.sqrt(rows / max(total, 1e-30))

    def enter(self, sublayer: int, block: Block, prefix: str) -> _Student:
        """The student's sublayer, whose last matrix and its bias are divided by `scale`."""
        student = _Student(sublayer, block, prefix)
        if self.scale == 1:
            return student
        scaled = {f"{student.product}.{kind}" for kind in ("weight", "bias")} & set(block)
        student.block = block | {name: block[name] / self.scale for name in scaled}
        if (bias := f"{student.product}.bias") in scaled:
            values, type_ = student.block[bias], self._encoding(student.index, bias)
            self.healed.add(prefix + bias, values.shape, encode(values, type_), type_)
        return student

    def heal(self, student: _Student) -> HealedMatrix:
        """Solve for a sublayer's last product, given the teacher's states that enter the next one which is
        kept; store it, and send the student's states through."""
        name = student.product + ".weight"
        old = student.block[name].float()
        equations = NormalEquations(old.shape[1], old.shape[0], old.device)
        inputs: dict[Group, Tensor] = {}
        for group in self.fit_groups:
            x = self._inputs(group, student)
            missing, weight = self._missing(group, student)
            equations.add(x.flatten(0, 1), missing, weight)
            if self.memory.inputs:
                inputs[group] = x
        if not equations.finite:
            raise not_finite(self.weights, f"what block {student.index} computes")
        nearest, factor = solve(equations, old, RIDGE, direct=self.memory.direct)
        solution = old + STEP * (nearest - old)
        type_ = self._encoding(student.index, name)
        if factor is None or not tensor_type(type_.name).few_bits:
            data = encode(solution, type_)
        else:
            data = encode_fed_forward(solution, factor, type_)
        del equations, factor
        stored = decode(data, type_).to(old.device)
        before, after, as_stored = self._errors(student, (old, solution, stored))
        better = as_stored < before
        if better or self.scale != 1:
            data = data if better else encode(old, type_)
            self.healed.add(student.prefix + name, old.shape, data, type_)
            stored = decode(data, type_).to(old.device)
            student.block = student.block | {name: stored.to(student.block[name].dtype)}
        self._add(student, inputs)
        return HealedMatrix(student.index, student.product, before, after, as_stored, type_.name, better)

    def _encoding(self, index: int, name: str) -> GGMLQuantizationType:
        info = self.weights.tensors[block_prefix(index) + name]
        return encoding_for(info.type, info.shape[-1])

    def _inputs(self, group: Group, student: _Student) -> Tensor:
        """What a sublayer's last product is applied to."""
        states, block = self.student[slice(*group)], student.block
        if student.sublayer % 2:
            return down_inputs(states, block, self.config)
        return out_inputs(states, block, self.config, self.positions[student.index])

    def _add(self, student: _Student, inputs: dict[Group, Tensor]) -> None:
        """Add a sublayer's product to the student's states; `inputs` that are known are used up."""
        for group in (*self.fit_groups, *self.check_groups):
            x = inputs.pop(group) if group in inputs else self._inputs(group, student)
            self.student[slice(*group)] += product(x, student.block, student.product, self.config)

    def _missing(self, group: Group, student: _Student) -> tuple[Tensor, Tensor]:
        """What the product should add to reach the teacher's states, `[rows, width]`; rows' weights."""
        target = self.teacher[slice(*group)]
        missing = (target / self.scale - self.student[slice(*group)]) / self.config.residual_scale
        if (bias := student.block.get(student.product + ".bias")) is not None:
            missing -= bias.float()
        return missing.flatten(0, 1), _weight(target).flatten()

    def _errors(self, student: _Student, weights: Sequence[Tensor]) -> list[float]:
        """The relative error with each of `weights` on the windows held back."""
        totals, rows = [0.0] * len(weights), 0
        for group in self.check_groups:
            missing, weight = self._missing(group, student)
            x = self._inputs(group, student).flatten(0, 1).float()
            rows += len(x)
            for slot, each in enumerate(weights):
                square = (missing - F.linear(x, each)).square().mean(1) * weight
                totals[slot] += square.double().sum().item()
        scale = (self.config.residual_scale * self.scale) ** 2
        return [scale * total / rows for total in totals]


def _weight(states: Tensor) -> Tensor:
    """The inverse mean square of each of the teacher's states."""
    return states.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
