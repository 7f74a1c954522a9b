"""Encoders of the types that the gguf package only decodes: Q2_K … Q6_K and IQ4_NL.

A block holds float16 steps, and for each of its parts a whole-number scale and, with some types, an offset:
a value is step · scale · code − offset step · offset. How blocks are laid out is in `ggml-common.h` and
`ggml-quants.c` of llama.cpp. Tensors here have a part's values along the first dimension,
`[part, n, parts]`, so that sums over a part run over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from gguf.quants import IQ4_NL
from torch import Tensor

from tinysleb.formats.gguf_file import Bytes

ROUNDS = 2
"""How often scales are improved with the codes that they lead to; a third round brings nothing."""
LEAST_IMPORTANCE = 1e-4
CHUNK_VALUES = 1 << 16
"""Values encoded at a time: few enough that what is computed of them stays in the cache."""


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
    offsets: int = 0
    """The greatest offset; 0 if there are none."""
    levels: tuple[int, ...] = ()
    """What the codes stand for, if not for themselves."""


def _between(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, count).tolist())


LAYOUTS = {
    "Q2_K": Layout(256, 16, (0, 3), (0, 15), _between(1.9, 3.7, 13), offsets=15),
    "Q3_K": Layout(256, 16, (-4, 3), (-32, 31), _between(-4.9, -3.1, 10)),
    "Q4_K": Layout(256, 32, (0, 15), (0, 63), _between(13.5, 15.5, 13), offsets=63),
    "Q5_K": Layout(256, 32, (0, 31), (0, 63), _between(29.5, 31.5, 13), offsets=63),
    "Q6_K": Layout(256, 16, (-32, 31), (-128, 127), _between(-32.9, -31.1, 6) + _between(30.1, 31.5, 6)),
    "IQ4_NL": Layout(
        32,
        32,
        (-127, 113),
        (1, 1),
        _between(-150, -100, 14) + _between(100, 140, 10),
        levels=tuple(IQ4_NL.kvalues),
    ),
}  # fmt: skip
"""What each type's blocks hold."""


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


def encode_rows(values: Tensor, name: str, importance: Tensor | None = None) -> Bytes:
    """Rows `[n, columns]`, float32, as stored in the type `name`: uint8 `[n, bytes of a row]`.

    `importance` `[columns]`: what the square of an error costs in each column, such as the mean square of
    what it is multiplied by. Numbers too large for the type lead to steps that are not finite.
    """
    layout = LAYOUTS[name]
    relative = None if importance is None else _relative(importance)
    packed = []
    for rows in torch.split(values, max(1, CHUNK_VALUES // values.shape[1])):
        blocks = rows.reshape(-1, layout.block)
        weights = (blocks.square().mean(1, keepdim=True) + blocks.square()).sqrt_()
        if relative is not None:
            weights = (weights.view(rows.shape) * relative).view(blocks.shape)
        scales = fit_scales(blocks, weights, layout)
        data = pack(scales, nearest_levels(blocks, scales, layout), name)
        packed.append(data.view(len(rows), -1))
    return torch.cat(packed).numpy()


def _relative(importance: Tensor) -> Tensor:
    """Importance in parts of its mean; never quite 0, so that every value counts for the scales."""
    mean = importance.float().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (importance.float() / mean).clamp_min(LEAST_IMPORTANCE)


def fit_scales(values: Tensor, weights: Tensor, layout: Layout) -> Scales:
    """The scales with which rounding `values` `[n, block]` costs least, as far as a search finds them."""
    x, w = _by_part(values, layout), _by_part(weights, layout)
    if layout.offsets:
        scale, offset = _search_scale_and_offset(x, w, layout)
    else:
        scale = _search_scale(x, w, layout)
        offset = torch.zeros_like(scale)
    scales = _quantised(scale, offset, w, layout)
    error = _error(x, w, scales, layout)
    for _ in range(ROUNDS):
        scales, error = _improve_parts(x, w, scales, error, layout)
        scales, error = _improve_steps(x, w, scales, error, layout)
    return scales


def nearest_levels(values: Tensor, scales: Scales, layout: Layout) -> Tensor:
    """What each of `values` `[n, block]` is rounded to, in units of its part's scale: `[n, block]`."""
    return _by_block(_levels(_by_part(values, layout), scales.scale, scales.offset, layout))


def decode_levels(levels: Tensor, scales: Scales, layout: Layout) -> Tensor:
    """The values `[n, block]` that levels `[n, block]` stand for."""
    return _by_block(_by_part(levels, layout) * scales.scale - scales.offset)


def _by_part(values: Tensor, layout: Layout) -> Tensor:
    parts = values.view(len(values), -1, layout.part)
    return parts.permute(2, 0, 1).contiguous()


def _by_block(parts: Tensor) -> Tensor:
    return parts.permute(1, 2, 0).reshape(parts.shape[1], -1)


def _levels(x: Tensor, scale: Tensor, offset: Tensor, layout: Layout) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return _rounded((x + offset).mul_(inverse) if layout.offsets else x * inverse, layout)


def _rounded(x: Tensor, layout: Layout) -> Tensor:
    """The nearest level of each of `x`, which may be used up."""
    if not layout.levels:
        return x.round_().clamp_(*layout.codes)
    return _half_steps(layout.levels)[(2 * x + 256).nan_to_num_(0).floor_().clamp_(0, 511).int()]


@cache
def _half_steps(levels: tuple[int, ...]) -> Tensor:
    """The level nearest to each half from -128 to 127.5; none changes between them."""
    known = torch.tensor(levels, dtype=torch.float32)
    middle = (torch.arange(-256, 256) + 0.5) / 2
    return known[torch.bucketize(middle, (known[1:] + known[:-1]) / 2)]


def _search_scale(x: Tensor, w: Tensor, layout: Layout) -> Tensor:
    """The scale `[…]` with which the levels nearest to `x / scale` `[part, …]` come closest to `x`."""
    wx = w * x
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    best, best_gain = largest / layout.largest[0], torch.full_like(largest, -torch.inf)
    tiny = torch.finfo(torch.float32).tiny
    for code in layout.largest:
        inverse = torch.where(largest.abs() > tiny, code / largest, 0.0)
        levels = _rounded(x * inverse, layout)
        along, square = (wx * levels).sum(0), (levels.square_() * w).sum(0)
        scale = torch.where(square > 0, along / square, 0.0)
        gain = scale * along
        better = gain > best_gain
        best, best_gain = torch.where(better, scale, best), torch.where(better, gain, best_gain)
    return best


def _search_scale_and_offset(x: Tensor, w: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The same, with an offset that is not negative."""
    low = x.amin(0).clamp_(max=0)
    raised = x - low
    span = raised.amax(0).clamp_(min=1e-30)
    wx = w * x
    weight, first = w.sum(0), wx.sum(0)
    scale, offset = span / layout.codes[1], -low
    best = torch.full_like(low, torch.inf)
    for code in layout.largest:
        levels = _rounded(raised * (code / span), layout)
        weighted = w * levels
        one, along = weighted.sum(0), (wx * levels).sum(0)
        square = weighted.mul_(levels).sum(0)
        slope = (weight * along - first * one) / (weight * square - one * one)
        shifted = (slope * one - first) / weight
        slope = torch.where(shifted < 0, along / square, slope)
        shifted.clamp_(min=0)
        error = slope * (slope * square - 2 * along) + shifted * (
            shifted * weight + 2 * first - 2 * slope * one
        )
        better = error < best  # nan, of parts with one level only, is not
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, slope, scale), torch.where(better, shifted, offset)
    return scale, offset


def _quantised(scale: Tensor, offset: Tensor, w: Tensor, layout: Layout) -> Scales:
    """Scales and offsets `[n, parts]` as whole numbers of steps."""
    weight = w.sum(0)
    step, scales = _in_steps(scale, weight, layout.scales)
    if not layout.offsets:
        return Scales(step, scales, torch.zeros_like(step), torch.zeros_like(scales))
    return Scales(step, scales, *_in_steps(offset, weight, (0, layout.offsets)))


def _in_steps(x: Tensor, w: Tensor, limits: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A step `[n]` and the whole numbers of steps nearest to `x` `[n, parts]`."""
    limit = float(limits[0] or limits[1])
    layout = Layout(x.shape[1], x.shape[1], limits, (1, 1), _between(limit - 0.9, limit + 0.9, 10))
    if limits[0] == limits[1]:
        return as_half(x[:, 0]), torch.ones_like(x)
    step = as_half(_search_scale(x.T, w.T, layout))
    return step, _rounded(x * _inverse(step)[:, None], layout)


def _inverse(step: Tensor) -> Tensor:
    return torch.where(step == 0, 0.0, 1 / step)


def as_half(x: Tensor) -> Tensor:
    """`x` rounded to float16, as float32."""
    return x.half().float()


def _errors(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """What rounding costs in each part, and the levels."""
    levels = _levels(x, scale, offset, layout)
    missing = (levels * scale).sub_(x)
    if layout.offsets:
        missing.sub_(offset)
    return missing.square_().mul_(w).sum(0), levels


def _error(x: Tensor, w: Tensor, scales: Scales, layout: Layout) -> Tensor:
    return _errors(x, w, scales.scale, scales.offset, layout)[0]


def _improve_parts(
    x: Tensor, w: Tensor, scales: Scales, error: Tensor, layout: Layout
) -> tuple[Scales, Tensor]:
    """Each part's scale one up or down, with the offset that suits it, where that costs less."""
    if layout.scales[0] == layout.scales[1]:
        return scales, error
    best, best_offsets = scales.scales, scales.offsets
    weight, first = w.sum(0), (w * x).sum(0)
    for change in (-1, 0, 1):
        changed = (scales.scales + change).clamp(*layout.scales)
        scale, offsets = scales.step[:, None] * changed, scales.offsets
        if layout.offsets:
            levels = _levels(x, scale, scales.offset, layout)
            offset = (scale * levels.mul_(w).sum(0) - first) / weight
            offsets = (offset * _inverse(scales.offset_step)[:, None]).round_().clamp_(0, layout.offsets)
        tried, _ = _errors(x, w, scale, scales.offset_step[:, None] * offsets, layout)
        better = tried < error
        error = torch.where(better, tried, error)
        best, best_offsets = torch.where(better, changed, best), torch.where(better, offsets, best_offsets)
    return replace(scales, scales=best, offsets=best_offsets), error


def _improve_steps(
    x: Tensor, w: Tensor, scales: Scales, error: Tensor, layout: Layout
) -> tuple[Scales, Tensor]:
    """The two steps solved for anew, given the codes that they led to, in blocks where that costs less."""
    levels = _levels(x, scales.scale, scales.offset, layout)
    wl = w * levels
    a = (scales.scales.square() * (wl * levels).sum(0)).sum(1)
    d = (scales.scales * (wl * x).sum(0)).sum(1)
    if layout.offsets:
        b = (scales.scales * scales.offsets * wl.sum(0)).sum(1)
        c = (scales.offsets.square() * w.sum(0)).sum(1)
        e = (scales.offsets * (w * x).sum(0)).sum(1)
        determinant = a * c - b * b
        step, offset_step = (d * c - b * e) / determinant, (b * d - a * e) / determinant
    else:
        step, offset_step = d / a, scales.offset_step
    tried = replace(scales, step=as_half(step), offset_step=as_half(offset_step))
    tried_error = _error(x, w, tried, layout)
    better = tried_error.sum(1) < error.sum(1)
    steps = torch.where(better, tried.step, scales.step)
    offset_steps = torch.where(better, tried.offset_step, scales.offset_step)
    return (
        replace(scales, step=steps, offset_step=offset_steps),
        torch.where(better[:, None], tried_error, error),
    )


def pack(scales: Scales, levels: Tensor, name: str) -> Tensor:
    """Blocks as stored, uint8 `[n, bytes of a block]`, of levels `[n, values of a block]`."""
    layout = LAYOUTS[name]
    if layout.levels:
        codes = torch.bucketize(levels.contiguous(), torch.tensor(layout.levels, dtype=torch.float32)).byte()
    else:
        codes = (levels - layout.codes[0]).byte()
    whole, offsets = (scales.scales - min(layout.scales[0], 0)).byte(), scales.offsets.byte()
    step, offset_step = (each.half()[:, None].view(torch.uint8) for each in (scales.step, scales.offset_step))
    stored: tuple[Tensor, ...]
    match name:
        case "Q2_K":
            stored = (whole | offsets << 4, _joined(codes, 2), step, offset_step)
        case "Q3_K":
            stored = (_high(codes >> 2), _joined(codes & 3, 2), _six_bits(whole), step)
        case "Q4_K":
            stored = (step, offset_step, _pairs(whole, offsets), _joined(codes, 4, 64))
        case "Q5_K":
            stored = (
                step,
                offset_step,
                _pairs(whole, offsets),
                _high(codes >> 4),
                _joined(codes & 15, 4, 64),
            )
        case "Q6_K":
            signed = scales.scales.to(torch.int8).view(torch.uint8)
            stored = (_joined(codes & 15, 4), _joined(codes >> 4, 2), signed, step)
        case _:
            stored = (step, _joined(codes, 4, 32))
    return torch.cat(stored, dim=1)


def _joined(codes: Tensor, bits: int, group: int = 128) -> Tensor:
    """Codes of 2 or 4 bits in bytes: the first quarter (half) of each `group` in the lowest bits."""
    parts = codes.view(len(codes), -1, 8 // bits, group * bits // 8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return (parts << shifts).sum(2, dtype=torch.uint8).flatten(1)


def _high(bits: Tensor) -> Tensor:
    """Single bits `[n, 256]` in bytes `[n, 32]`: those of the first 32 values are the lowest."""
    return _joined(bits, 1, 256)


def _six_bits(scales: Tensor) -> Tensor:
    """16 scales of 6 bits in 12 bytes: their low halves, then their high bits."""
    return torch.cat([_joined(scales & 15, 4, 16), _joined(scales >> 4, 2, 16)], dim=1)


def _pairs(scales: Tensor, offsets: Tensor) -> Tensor:
    """8 scales and 8 offsets of 6 bits in 12 bytes: the first four of each have a byte's low bits to
    themselves, the others lie in four bytes of their own and in what is left of those."""
    first = [each[:, :4] | each[:, 4:] >> 4 << 6 for each in (scales, offsets)]
    return torch.cat([*first, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4], dim=1)
