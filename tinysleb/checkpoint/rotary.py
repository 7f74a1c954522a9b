"""Rotary position embedding and its scalings, as numbers: what each frequency is divided by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinysleb.checkpoint.architectures import Architecture
from tinysleb.checkpoint.settings import SettingsReader

SETTINGS = frozenset(
    """
    attention_factor beta_fast beta_slow factor finetuned high_freq_factor long_factor low_freq_factor mscale
    mscale_all_dim original_max_position_embeddings partial_rotary_factor rope_theta rope_type short_factor
    truncate type
    """.split()  # noqa: SIM905
)
"""The keys of `rope_parameters` that are known; each kind of scaling reads its own, as in transformers."""


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864) of the first `dimensions` values of a head.

    Frequency i turns by `position / linear_factor * theta^(-2i / dimensions) / frequency_factors[i]`
    radians, and the result is multiplied by `attention_factor`. Llama 3's and YaRN's scalings are sets of
    frequency factors; LongRoPE has a second set for windows longer than `original_context`.
    """

    theta: float
    dimensions: int
    linear_factor: float = 1.0
    frequency_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original_context: int = 0
    attention_factor: float = 1.0
    yarn_factor: float = 0.0
    """YaRN's factor, which a GGUF states instead of the frequency factors it leads to; 0 for none."""


def rotary_from_huggingface(
    values: Mapping[str, Any], architecture: Architecture, head_dim: int, context_length: int, where: str
) -> Rotary:
    """The rotation a `config.json` asks for: `rope_theta` and `rope_scaling`, or newer `rope_parameters`.

    As in transformers: of the two objects `rope_scaling` counts, unless it is empty; what it leaves out is
    taken from beside it. An original context stated beside it counts more than one within.
    """
    outermost = SettingsReader(values, where)
    parameters = outermost.mapping("rope_scaling") or outermost.mapping("rope_parameters")
    inner = {key: value for key, value in parameters.items() if value is not None}
    shared = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    outer = {key: values[key] for key in shared if values.get(key) is not None}
    original = {key: value for key, value in outer.items() if key == "original_max_position_embeddings"}
    read = SettingsReader(outer | inner | original, where, "rope: ")
    kind = read.text("rope_type", default=read.text("type", default="default"))
    part = read.real("partial_rotary_factor", default=1.0)
    if part != 1 and "partial_rotary_factor" not in architecture.keys:
        if kind != "default":
            raise read.not_modelled("partial_rotary_factor", part, "1 in this family")
        part = 1.0  # which the families that do not know it never read
    if part > 1:
        raise read.not_modelled("partial_rotary_factor", part, "at most 1")
    plain = Rotary(read.real("rope_theta", default=10000.0), int(head_dim * part))
    return _scaled(kind, plain, read, context_length)


def _scaled(kind: str, plain: Rotary, read: SettingsReader, context_length: int) -> Rotary:
    if kind == "default":
        return plain
    if kind == "dynamic":  # acts only beyond the original length
        read.real("factor", default=1.0)
        return plain
    if kind == "linear":
        return replace(plain, linear_factor=read.real("factor"))
    if kind == "llama3":
        return replace(plain, frequency_factors=_llama3_factors(plain, read, context_length))
    if kind == "yarn":
        return _yarn_from_huggingface(plain, read, context_length)
    if kind in ("longrope", "su"):
        return _longrope(plain, context_length, read)
    raise read.not_modelled("rope_type", kind, "default, linear, llama3, yarn or longrope")


def rotary_from_gguf(read: SettingsReader, head_dim: int, factors: Mapping[str, tuple[float, ...]]) -> Rotary:
    """The rotation a GGUF asks for. `factors`: those it holds as tensors, by `freqs`, `short` and `long`."""
    theta = read.real("rope.freq_base", default=10000.0)
    plain = Rotary(theta, read.integer("rope.dimension_count", default=head_dim, most=head_dim))
    kind = read.text("rope.scaling.type", default="longrope" if factors.get("long") else "none")
    factor = read.real("rope.scaling.factor", default=1.0)
    attention = read.real("rope.scaling.attn_factor", default=1.0)
    context_length = read.integer("context_length")
    original = read.integer("rope.scaling.original_context_length", default=context_length)
    if kind == "linear":
        return replace(plain, linear_factor=factor)
    if kind == "yarn":
        fast = read.real("rope.scaling.yarn_beta_fast", default=32.0)
        return _yarn(plain, factor, original, fast, read.real("rope.scaling.yarn_beta_slow", default=1.0))
    if kind == "longrope":
        return replace(
            plain,
            frequency_factors=factors.get("short", ()),
            long_factors=factors.get("long", ()),
            original_context=original,
            attention_factor=attention,
        )
    if kind != "none":
        raise read.not_modelled("rope.scaling.type", kind, "none, linear, yarn or longrope")
    return replace(plain, frequency_factors=factors.get("freqs", ()))


@np.errstate(all="ignore")  # what comes of senseless numbers is refused with the whole config
def _llama3_factors(plain: Rotary, read: SettingsReader, context_length: int) -> tuple[float, ...]:
    """Llama 3.1's scaling as divisors of the frequencies, in float32 (Hugging Face's `llama3`).

    High frequencies stay, low ones are divided by `factor`, those between are blended.
    """
    factor = read.real("factor")
    low, high = read.real("low_freq_factor"), read.real("high_freq_factor")
    original = read.real("original_max_position_embeddings", default=context_length)
    if not low < high:
        raise read.not_modelled("low_freq_factor", low, f"less than high_freq_factor, {high}")
    wavelengths = np.float32(2 * math.pi) * _inverse_frequencies(plain)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(
        wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended)
    )
    return tuple(factors.astype(np.float32).tolist())


def _yarn_from_huggingface(plain: Rotary, read: SettingsReader, context_length: int) -> Rotary:
    original = read.integer("original_max_position_embeddings", default=context_length)
    fast, slow = read.real("beta_fast", default=32.0), read.real("beta_slow", default=1.0)
    for key, neutral in (("mscale", 0), ("mscale_all_dim", 0), ("truncate", True)):
        read.require(key, neutral, default=neutral)
    rotary = _yarn(plain, read.real("factor"), original, fast, slow)
    read.require("attention_factor", rotary.attention_factor, default=rotary.attention_factor)
    return rotary


@np.errstate(all="ignore")
def _yarn(plain: Rotary, factor: float, original: int, fast: float, slow: float) -> Rotary:
    """YaRN (arXiv 2309.00071, section 3.2): low frequencies are divided by `factor`, high ones stay.

    Between the dimensions that turn `fast` and `slow` times over the original context lies a linear ramp.
    Results are multiplied by 0.1 ln(factor) + 1.
    """

    logarithm = math.log(plain.theta) or 1e-30

    def dimension(turns: float) -> float:
        turned = math.log(original / (turns * 2 * math.pi))
        return plain.dimensions * turned / (2 * logarithm)

    first = max(math.floor(dimension(fast)), 0)
    last = min(math.ceil(dimension(slow)), plain.dimensions - 1)
    ramp = (np.arange(plain.dimensions // 2, dtype=np.float32) - first) / ((last - first) or 0.001)
    stay = 1 - np.clip(ramp, 0, 1)
    factors = 1 / ((1 - stay) / np.float32(factor) + stay)
    return replace(
        plain,
        frequency_factors=tuple(factors.astype(np.float32).tolist()),
        original_context=original,
        attention_factor=float(np.float32(0.1 * math.log(factor) + 1)) if factor > 1 else 1.0,
        yarn_factor=factor,
    )


def _longrope(plain: Rotary, context_length: int, read: SettingsReader) -> Rotary:
    """LongRoPE (arXiv 2402.13753): factors given for windows up to and beyond the original context."""
    original = read.integer("original_max_position_embeddings", default=context_length)
    if original == 1:
        raise read.not_modelled("original_max_position_embeddings", original, "a context length")
    scale = read.real("factor", default=context_length / original)
    attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return replace(
        plain,
        frequency_factors=tuple(read.positive_reals("short_factor")),
        long_factors=tuple(read.positive_reals("long_factor")),
        original_context=original,
        attention_factor=float(np.float32(read.real("attention_factor", default=attention))),
    )


def _inverse_frequencies(rotary: Rotary) -> np.ndarray[Any, np.dtype[np.float32]]:
    exponents = np.arange(0, rotary.dimensions, 2, dtype=np.float32) / np.float32(rotary.dimensions)
    inverse: np.ndarray[Any, np.dtype[np.float32]] = np.float32(rotary.theta) ** exponents
    return inverse
