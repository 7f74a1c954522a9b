"""Storing a model's blocks in other types, in one walk up the stack.

Within a matrix, the errors of rounding are fed forward (GPTQ, arXiv 2210.17323); from matrix to matrix and
from block to block, too: the inputs of each are those that the ones below give as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig, block_prefix, block_shapes, shapes_of_block
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.checkpoint.weights import TensorInfo, Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Allowance, block_bytes, working_bytes
from tinysleb.formats.finite import all_finite, too_large
from tinysleb.formats.gguf_file import Bytes
from tinysleb.formats.tensor_types import tensor_type
from tinysleb.heal.healed_weights import HealedTensors
from tinysleb.heal.ridge import add_to_gram, fill_lower
from tinysleb.heal.rounding import encode_fed_forward
from tinysleb.model.blocks import Block, load_blocks
from tinysleb.model.chunks import chunks, windows_in_call
from tinysleb.model.forward import embed_stream, gated, half_inputs, mixed_values, product
from tinysleb.model.positions import Position, block_positions

DAMPING = 0.5
"""What is added to the diagonal of a Gram matrix, as a fraction of its mean. With GPTQ's 0.01, errors on
other kinds of text come close to those of plain rounding (docs/experiments.md): tokens are few."""
ROUNDED_AT_ONCE = 1 << 24
"""Values of a matrix that are rounded at a time."""

Inputs = Callable[[Tensor], Tensor]
"""What a matrix is applied to, given the states that enter its half of the block."""
Wanted = Callable[[str, TensorInfo], GGMLQuantizationType | None]
"""The type that a tensor is to be stored in; None to leave it as it is."""


@dataclass(frozen=True)
class RoundedBlock:
    """How a block was stored: the types of its tensors that were encoded, and what that did to the outputs of
    its matrices of few bits: the mean square of the change, relative to that of the outputs."""

    block: int
    types: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class RoundingMemory:
    """How rounding uses its memory.

    `inputs`: how many inputs a matrix may have for its errors to be fed forward. `streams`, `ahead`: as in
    `HealingMemory`.
    """

    inputs: int
    streams: bool
    ahead: bool


def plan_rounding_memory(config: ModelConfig, shape: tuple[int, int], compute: Compute) -> RoundingMemory:
    """Divide the budget for windows of `shape` `(n, T)`. Raises TinyslebError with the least that would do.

    What a block and a part of a matrix take while they are computed is always counted. What is left goes to
    the Gram matrix and what is computed from it, the states, and a second block, in this order.
    """
    item, matrices = compute.dtype.itemsize, [s for s in block_shapes(config).values() if len(s) == 2]
    float32_float64_errors_and_stored = 4 + 8 + 8 + 4 + 4
    rounding = min(ROUNDED_AT_ONCE, max(map(math.prod, matrices))) * float32_float64_errors_and_stored
    least = working_bytes(config, shape[1], item) + rounding
    left = Allowance(compute.memory, least, "is too little for rounding")
    gram_its_factor_and_inverse = 4 + 4 * 8
    largest_first = sorted({size for _, size in matrices}, reverse=True)
    inputs = next((n for n in largest_first if left.grant(n**2 * gram_its_factor_and_inverse)), 0)
    streams = left.grant(shape[0] * shape[1] * config.width * 4)
    return RoundingMemory(inputs, streams, ahead=left.grant(block_bytes(config, item)))


@torch.inference_mode()
def round_blocks(
    weights: Weights,
    wanted: Wanted,
    windows: Tensor,
    compute: Compute,
    healed: HealedTensors,
    progress: Callable[[float], None],
) -> list[RoundedBlock]:
    """Encode the blocks' tensors in the types `wanted`, from the values that `weights` gives, into `healed`.

    `windows` `[n, T]` say which errors matter. Matrices of few bits are rounded with errors fed forward, if
    there is memory for it; all else plainly. A block that nothing is wanted of has no record. Raises
    TinyslebError if there is too little memory, or a number is not finite; then `healed` is of no use.
    """
    config = weights.config
    types = {
        name: type_
        for index in range(config.blocks)
        for name in (block_prefix(index) + each for each in shapes_of_block(config, index))
        if (type_ := wanted(name, weights.tensors[name])) is not None
    }
    prefixes = [block_prefix(index) for index in range(config.blocks)]
    touched = [any(name.startswith(prefix) for name in types) for prefix in prefixes]
    count = max((index + 1 for index, each in enumerate(touched) if each), default=0)
    walk = _Walk(weights, types, windows, compute, healed)
    results = []
    blocks = load_blocks(weights, range(count), compute.dtype, compute.device, walk.memory.ahead)
    for index in range(count):
        record = walk.climb(index, next(blocks))
        results += [record] if touched[index] else []
        progress((index + 1) / count)
    return results


@dataclass(frozen=True)
class _Half:
    """A half of a block: the matrices that share its inputs, as they compute and as a family that fuses them
    stores them; what is computed from them; the last matrix; and the norm before, if one is."""

    first: tuple[str, ...]
    fused: str
    last: str
    between: Callable[[Tensor, Block, ModelConfig, Position], Tensor]
    norm_before: str

    def stored(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        """The first matrices by the names that they are stored by, each with its parts in order."""
        return {self.fused: self.first} if config.architecture.fused else {n: (n,) for n in self.first}

    def entering(self, block: Block, config: ModelConfig, states: Tensor) -> Tensor:
        """The inputs of the first matrices, `[n, T, in]`."""
        return half_inputs(states, block, config, self.last, self.norm_before)

    def leaving(
        self, block: Block, config: ModelConfig, position: Position, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states after this half, and the inputs of its last matrix."""
        inputs = self.between(self.entering(block, config, states), block, config, position)
        return states + product(inputs, block, self.last, config), inputs

    def weighted(self, block: Block, config: ModelConfig, position: Position, states: Tensor) -> Tensor:
        """The inputs of the last matrix, divided by the root mean square of the states it leads to: what
        matters above is an error's size relative to them."""
        after, inputs = self.leaving(block, config, position, states)
        square = after.square().mean(-1, keepdim=True)
        return inputs.float() * square.clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


HALVES = (
    _Half(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj",
        "self_attn.o_proj", mixed_values, "input_layernorm",
    ),
    _Half(
        ("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj",
        "mlp.down_proj", lambda inputs, block, *_: gated(inputs, block),
        "post_attention_layernorm",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Cost:
    """What an error in a row of a matrix costs: the diagonal `[in]` of the inputs' Gram matrix and,
    where there is memory for them, that matrix `[in, in]` and its factor."""

    diagonal: Tensor
    gram: Tensor | None
    factor: Tensor | None

    def of(self, rows: Tensor) -> float:
        """The squares of what `rows` `[m, in]` give with the inputs, summed."""
        if self.gram is None:
            return float((rows.square() @ self.diagonal).sum())
        rows = rows.to(self.gram.device)
        return float(((rows @ self.gram) * rows).sum())


class _Walk:
    """The states of the windows, `[n, T, width]`, on their way up."""

    def __init__(
        self,
        weights: Weights,
        types: Mapping[str, GGMLQuantizationType],
        windows: Tensor,
        compute: Compute,
        healed: HealedTensors,
    ) -> None:
        self.weights, self.config, self.types, self.healed = weights, weights.config, types, healed
        self.memory = plan_rounding_memory(self.config, (windows.shape[0], windows.shape[1]), compute)
        self.positions = block_positions(self.config, windows.shape[1], compute.device)
        groups = chunks(len(windows), windows_in_call(windows.shape[1]))
        self.groups = [slice(*group) for group in groups]
        tokens = windows.to(compute.device)
        file = None if self.memory.streams else healed.folder / "states"
        self.states = embed_stream(weights, tokens, file)

    def climb(self, index: int, block: Block) -> RoundedBlock:
        """Store a block, and send the states through it as it is stored."""
        prefix, config, position = block_prefix(index), self.config, self.positions[index]
        self._store_vectors(prefix, block)
        errors: list[float] = []
        for half in (each for each in HALVES if f"{each.last}.weight" in block):
            errors += self._store(prefix, block, half.stored(config), partial(half.entering, block, config))
            weighted = partial(half.weighted, block, config, position)
            errors += self._store(prefix, block, {half.last: (half.last,)}, weighted)
            for group in self.groups:
                self.states[group], _ = half.leaving(block, config, position, self.states[group])
        names = {type_.name for name, type_ in self.types.items() if name.startswith(prefix)}
        return RoundedBlock(index, tuple(sorted(names)), sum(errors) / max(1, len(errors)))

    def _store_vectors(self, prefix: str, block: Block) -> None:
        for name, shape in block_shapes(self.config).items():
            if len(shape) == 1 and (type_ := self.types.get(prefix + name)) is not None:
                data = encode(self.weights.tensor(prefix + name).view(1, -1), type_)
                self.healed.add(prefix + name, shape, data, type_)
                block[name] = decode(data, type_)[0].to(block[name])

    def _store(
        self, prefix: str, block: Block, stored: Mapping[str, tuple[str, ...]], inputs: Inputs
    ) -> list[float]:
        """Store matrices that share their `inputs`; the error of each of few bits."""
        types = {name: self.types.get(f"{prefix}{name}.weight") for name in stored}
        careful = any(type_ is not None and tensor_type(type_.name).few_bits for type_ in types.values())
        cost = self._cost(prefix, inputs) if careful else None
        errors: list[float] = []
        for name, type_ in types.items():
            if type_ is None:
                continue
            error, decoded = self._encode(f"{prefix}{name}.weight", type_, cost)
            errors += [error] if tensor_type(type_.name).few_bits else []
            parts = [f"{part}.weight" for part in stored[name]]
            rows = torch.tensor_split(decoded, list(accumulate(len(block[part]) for part in parts))[:-1])
            block |= {part: each.to(block[part]) for part, each in zip(parts, rows, strict=True)}
        return errors

    def _cost(self, prefix: str, inputs: Inputs) -> _Cost:
        """What errors cost, by the inputs of all windows."""
        size = inputs(self.states[:1]).shape[-1]
        whole = size <= self.memory.inputs
        gram = torch.zeros(size, size if whole else 1, device=self.states.device)
        for group in self.groups:
            x = inputs(self.states[group]).flatten(0, 1).float()
            if whole:
                add_to_gram(gram, x)
            else:
                gram[:, 0] += x.square().sum(0)
        diagonal = gram.diagonal() if whole else gram[:, 0]
        if not diagonal.isfinite().all():
            raise not_finite(self.weights, f"what {prefix.rstrip('.')} computes")
        if not whole:
            return _Cost(diagonal.cpu(), None, None)
        fill_lower(gram)
        return _Cost(diagonal.cpu(), gram, _factor(gram))

    def _encode(self, name: str, type_: GGMLQuantizationType, cost: _Cost | None) -> tuple[float, Tensor]:
        """Store a matrix; what that changes in its outputs, and its values as stored."""
        shape = self.weights.tensors[name].shape
        parts: list[Bytes] = []
        decoded: list[Tensor] = []
        changed = total = 0.0
        for start, stop in chunks(shape[0], max(1, ROUNDED_AT_ONCE // shape[1])):
            values = self.weights.tensor(name, start, stop).float()
            if not values.isfinite().all():
                raise not_finite(self.weights, name)
            parts.append(_encode_rows(values, type_, cost))
            if not all_finite(parts[-1], type_.name):
                raise too_large(self.weights.path, name, type_.name)
            decoded.append(decode(parts[-1], type_))
            if cost is not None:
                changed += cost.of(decoded[-1] - values)
                total += cost.of(values)
        self.healed.add(name, shape, np.concatenate(parts), type_)
        return changed / max(total, 1e-30), torch.cat(decoded)


def _encode_rows(values: Tensor, type_: GGMLQuantizationType, cost: _Cost | None) -> Bytes:
    if cost is None or not tensor_type(type_.name).few_bits:
        return encode(values, type_)
    if cost.factor is None:
        return encode(values, type_, cost.diagonal)
    return encode_fed_forward(values, cost.factor, type_)


def _factor(gram: Tensor) -> Tensor:
    """Cholesky's factor of a Gram matrix, damped, in float64 on the CPU."""
    damped = gram.cpu().double()
    damped.diagonal().add_(max(DAMPING * damped.diagonal().mean().item(), torch.finfo(torch.float32).tiny))
    factor: Tensor = torch.linalg.cholesky(damped)
    return factor
