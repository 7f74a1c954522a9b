"""Which device to compute on, and in which precision."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

from tinysleb.errors import TinyslebError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE_SECONDS = 0.025
WORTHWHILE = 1.3
"""How much faster bfloat16 must be than float32 to be chosen."""


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises TinyslebError if the device asked for is not there."""
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[name]:
        raise TinyslebError(f"--device {name}: this machine or this build of torch has none")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, width: int, intermediate: int) -> torch.dtype:
    """`auto` is bfloat16 where a short probe finds its matrix products faster, else float32."""
    if name != "auto":
        return DTYPES[name]
    float32, bfloat16 = (
        _products_per_second(dtype, device, width, intermediate) for dtype in (torch.float32, torch.bfloat16)
    )
    return torch.bfloat16 if bfloat16 > WORTHWHILE * float32 else torch.float32


def _products_per_second(dtype: torch.dtype, device: torch.device, width: int, intermediate: int) -> float:
    hidden = torch.ones(512, width, dtype=dtype, device=device)
    matrix = torch.ones(intermediate, width, dtype=dtype, device=device)
    F.linear(hidden, matrix).sum().item()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < PROBE_SECONDS:
        F.linear(hidden, matrix)[0, 0].item()
        count += 1
    return count / (time.perf_counter() - begin)
