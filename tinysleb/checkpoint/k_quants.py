"""Encoders that search for scales: of Q2_K … Q6_K and IQ4_NL, which the gguf package only decodes, and of the
simple types of four and five bits.

Tensors here have a part's values along the first dimension, `[part, n, parts]`, so that sums over a part run
over contiguous memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from tinysleb.checkpoint.k_quant_layouts import LAYOUTS, Layout, Scales, between, pack
from tinysleb.formats.gguf_file import Bytes

ROUNDS = 2
"""How often scales are improved with the codes that they lead to; a third round brings nothing."""
LEAST_IMPORTANCE = 1e-4
CHUNK_VALUES = 1 << 16
"""Values encoded at a time: few enough that what is computed of them stays in the cache."""


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
    if layout.has_offsets:
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
    return _by_block(levels_at(_by_part(values, layout), scales.scale, scales.offset, layout))


def decode_levels(levels: Tensor, scales: Scales, layout: Layout) -> Tensor:
    """The values `[n, block]` that levels `[n, block]` stand for."""
    return _by_block(_by_part(levels, layout) * scales.scale - scales.offset)


def _by_part(values: Tensor, layout: Layout) -> Tensor:
    parts = values.view(len(values), -1, layout.part)
    return parts.permute(2, 0, 1).contiguous()


def _by_block(parts: Tensor) -> Tensor:
    return parts.permute(1, 2, 0).reshape(parts.shape[1], -1)


def levels_at(x: Tensor, scale: Tensor, offset: Tensor, layout: Layout) -> Tensor:
    """What `x` is rounded to, in units of `scale`; all of shapes that go together."""
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return _rounded((x + offset).mul_(inverse) if layout.has_offsets else x * inverse, layout)


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
    """The same, with an offset; it is not negative where it is a whole number of steps."""
    least = 0.0 if layout.offsets[0] == 0 else -torch.inf
    low = x.amin(0).clamp_(max=-least)
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
        slope = torch.where(shifted < least, along / square, slope)
        shifted.clamp_(min=least)
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
    if not layout.has_offsets:
        return Scales(step, scales, torch.zeros_like(step), torch.zeros_like(scales))
    return Scales(step, scales, *_in_steps(offset, weight, layout.offsets))


def _in_steps(x: Tensor, w: Tensor, limits: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A step `[n]` and the whole numbers of steps nearest to `x` `[n, parts]`."""
    limit = float(limits[0] or limits[1])
    layout = Layout(x.shape[1], x.shape[1], limits, (1, 1), between(limit - 0.9, limit + 0.9, 10))
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
    levels = levels_at(x, scale, offset, layout)
    missing = (levels * scale).sub_(x)
    if layout.has_offsets:
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
        if layout.has_offsets:
            levels = levels_at(x, scale, scales.offset, layout)
            offset = (scale * levels.mul_(w).sum(0) - first) / weight
            offsets = (offset * _inverse(scales.offset_step)[:, None]).round_().clamp_(*layout.offsets)
        tried, _ = _errors(x, w, scale, scales.offset_step[:, None] * offsets, layout)
        better = tried < error
        error = torch.where(better, tried, error)
        best, best_offsets = torch.where(better, changed, best), torch.where(better, offsets, best_offsets)
    return replace(scales, scales=best, offsets=best_offsets), error


def _improve_steps(
    x: Tensor, w: Tensor, scales: Scales, error: Tensor, layout: Layout
) -> tuple[Scales, Tensor]:
    """The two steps solved for anew, given the codes that they led to, in blocks where that costs less."""
    levels = levels_at(x, scales.scale, scales.offset, layout)
    wl = w * levels
    a = (scales.scales.square() * (wl * levels).sum(0)).sum(1)
    d = (scales.scales * (wl * x).sum(0)).sum(1)
    if layout.has_offsets:
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
