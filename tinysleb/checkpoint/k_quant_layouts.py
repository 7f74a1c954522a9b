"""What the blocks of quantised types hold, and how they are packed.

A block has float16 steps, and for each of its parts a whole-number scale and, with some types, an offset: a
value is step · scale · code − offset step · offset. After `ggml-common.h` and `ggml-quants.c` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gguf.quants import IQ4_NL
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """What the blocks of a type hold."""

    block: int
    """Values in a block."""
    part: int
    """Values that share a scale."""
    codes: tuple[int, int]
    """The least and the greatest code."""
    scales: tuple[int, int]
    """The least and the greatest scale."""
    largest: tuple[float, ...]
    """Scales tried at first: those that make the largest value so many."""
    offsets: tuple[int, int] = (0, 0)
    """The least and the greatest offset; twice 0 if there are none, twice 1 if the step alone says it."""
    levels: tuple[int, ...] = ()
    """What the codes stand for, if not for themselves."""

    @property
    def has_offsets(self) -> bool:
        """Whether something is taken away from what codes and scales give."""
        return self.offsets[1] > 0

    @property
    def has_minimum(self) -> bool:
        """Whether what is taken away is a step of its own: the least value of a block, sign turned."""
        return self.offsets == (1, 1)


def between(first: float, last: float, count: int) -> tuple[float, ...]:
    """So many numbers, evenly spaced from the first to the last."""
    return tuple(torch.linspace(first, last, count).tolist())


LAYOUTS = {
    "Q2_K": Layout(256, 16, (0, 3), (0, 15), between(1.9, 3.7, 13), offsets=(0, 15)),
    "Q3_K": Layout(256, 16, (-4, 3), (-32, 31), between(-4.9, -3.1, 10)),
    "Q4_K": Layout(256, 32, (0, 15), (0, 63), between(13.5, 15.5, 13), offsets=(0, 63)),
    "Q5_K": Layout(256, 32, (0, 31), (0, 63), between(29.5, 31.5, 13), offsets=(0, 63)),
    "Q4_0": Layout(32, 32, (-8, 7), (1, 1), between(-8.9, -7.1, 6) + between(6.1, 7.5, 6)),
    "Q4_1": Layout(32, 32, (0, 15), (1, 1), between(13.5, 15.5, 13), offsets=(1, 1)),
    "Q5_0": Layout(32, 32, (-16, 15), (1, 1), between(-16.9, -15.1, 6) + between(14.1, 15.5, 6)),
    "Q5_1": Layout(32, 32, (0, 31), (1, 1), between(29.5, 31.5, 13), offsets=(1, 1)),
    "Q6_K": Layout(256, 16, (-32, 31), (-128, 127), between(-32.9, -31.1, 6) + between(30.1, 31.5, 6)),
    "IQ4_NL": Layout(
        32,
        32,
        (-127, 113),
        (1, 1),
        between(-150, -100, 14) + between(100, 140, 10),
        levels=tuple(IQ4_NL.kvalues),
    ),
}  # fmt: skip
"""What each type's blocks hold."""
STEPS = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_0": (0,),
    "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,),
}  # fmt: skip
"""Where the float16 steps lie in a block, by their first byte. A minimum is a step of offsets, too."""


@dataclass(frozen=True)
class Scales:
    """What a number of blocks need besides codes: `step`, `offset_step` `[n]`, float16 values in float32;
    `scales`, `offsets` `[n, parts]`, whole numbers in float32."""

    step: Tensor
    scales: Tensor
    offset_step: Tensor
    offsets: Tensor

    @property
    def scale(self) -> Tensor:
        """By what the codes of each part are multiplied, `[n, parts]`."""
        return self.step[:, None] * self.scales

    @property
    def offset(self) -> Tensor:
        """What is then taken away, `[n, parts]`."""
        return self.offset_step[:, None] * self.offsets


def pack(scales: Scales, levels: Tensor, name: str) -> Tensor:
    """Blocks as stored, uint8 `[n, bytes of a block]`, of levels `[n, values of a block]`."""
    layout = LAYOUTS[name]
    if layout.levels:
        known = torch.tensor(layout.levels, dtype=torch.float32)
        codes = torch.bucketize(levels.contiguous(), known).byte()
    else:
        codes = (levels - layout.codes[0]).byte()
    fields = _simple_fields if layout.scales == (1, 1) else _scaled_fields
    return torch.cat(fields(scales, codes, name), dim=1)


def _simple_fields(scales: Scales, codes: Tensor, name: str) -> list[Tensor]:
    low = _joined(codes & 15, 4, 32)
    minimum = [_half(-scales.offset_step)] if LAYOUTS[name].has_offsets else []
    high = [_joined(codes >> 4, 1, 8)] if name in ("Q5_0", "Q5_1") else []
    return [_half(scales.step), *minimum, *high, low]


def _scaled_fields(scales: Scales, codes: Tensor, name: str) -> list[Tensor]:
    step, offset_step = _half(scales.step), _half(scales.offset_step)
    whole = (scales.scales - min(LAYOUTS[name].scales[0], 0)).byte()
    offsets = scales.offsets.byte()
    match name:
        case "Q2_K":
            return [whole | offsets << 4, _joined(codes, 2), step, offset_step]
        case "Q3_K":
            return [_joined(codes >> 2, 1, 256), _joined(codes & 3, 2), _six_bits(whole), step]
        case "Q4_K":
            return [step, offset_step, _pairs(whole, offsets), _joined(codes, 4, 64)]
        case "Q5_K":
            high, low = _joined(codes >> 4, 1, 256), _joined(codes & 15, 4, 64)
            return [step, offset_step, _pairs(whole, offsets), high, low]
    signed = scales.scales.to(torch.int8).view(torch.uint8)
    return [_joined(codes & 15, 4), _joined(codes >> 4, 2), signed, step]


def _half(step: Tensor) -> Tensor:
    return step.half()[:, None].view(torch.uint8)


def _joined(codes: Tensor, bits: int, group: int = 128) -> Tensor:
    """Codes of 1, 2 or 4 bits in bytes: of each `group`, the first eighth, quarter or half lie lowest."""
    parts = codes.view(len(codes), -1, 8 // bits, group * bits // 8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return (parts << shifts).sum(2, dtype=torch.uint8).flatten(1)


def _six_bits(scales: Tensor) -> Tensor:
    """16 scales of 6 bits in 12 bytes: their low halves, then their high bits."""
    return torch.cat([_joined(scales & 15, 4, 16), _joined(scales >> 4, 2, 16)], dim=1)


def _pairs(scales: Tensor, offsets: Tensor) -> Tensor:
    """8 scales and 8 offsets of 6 bits in 12 bytes: the first four of each have a byte's low bits to
    themselves, the others lie in four bytes of their own and in what is left of those."""
    first = [each[:, :4] | each[:, 4:] >> 4 << 6 for each in (scales, offsets)]
    return torch.cat([*first, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4], dim=1)
