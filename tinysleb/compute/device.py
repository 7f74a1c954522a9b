"""Which device to compute on, and in which precision."""

from __future__ import annotations

import math
import time
from collections.abc import Set
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from tinysleb.compute.memory import Budget, give_back_freed, resident_bytes
from tinysleb.errors import TinyslebError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Features that make bfloat16 products faster than float32: two of x86, one of ARM, by Linux's names."""
BFLOAT16_CAPABILITY = (8, 0)
"""The first CUDA compute capability whose tensor cores multiply bfloat16."""
CPUINFO = Path("/proc/cpuinfo")
PROBE_SIZE, PROBE_RUNS = 1024, 8
COMPARISON_RUNS = 64
"""Products in each precision when a probe has to choose: enough to outlast a busy moment."""
WORTHWHILE = 1.3
"""How much faster than float32 a probe must find bfloat16 for it to be chosen."""


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; `auto` is a GPU if there is one; of several, number `local_rank`.

    Raises TinyslebError if that device is not there.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[name]:
        raise TinyslebError(
            f"this machine, or this build of torch, has no {name} device",
            f"available: {', '.join(kind for kind in present if present[kind])}",
        )
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise TinyslebError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
            "start as many processes as there are GPUs, or use --device cpu",
        )
    return torch.device("cuda", local_rank)


def make_current(device: torch.device) -> None:
    """Let what names no GPU, such as `torch.cuda.current_stream()`, mean this one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def measure_budget(device: torch.device, total: int) -> Budget:
    """What a search may use of `total` bytes: the process's memory or, on a GPU, at most what is free there.

    Memory that earlier work has freed goes back to the system first, so that it does not count as held.
    """
    if device.type != "cuda":
        give_back_freed()
        return Budget(total, resident_bytes())
    free, _ = torch.cuda.mem_get_info(device)
    return Budget(min(total, free), 0)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`; `auto` is bfloat16 where its matrix products are faster, else float32.

    What the processor can do decides, so that a busy moment does not; a probe, where that is not known.
    Raises TinyslebError for an unknown name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise TinyslebError(f"{name!r} is not a precision", f"known: auto, {', '.join(DTYPES)}")
    fast = has_fast_bfloat16(device)
    if fast is None:
        fast = bfloat16_wins_probe(device)
    return torch.bfloat16 if fast else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool | None:
    """Whether the device multiplies bfloat16 faster than float32; None if its features are not known."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
    features = cpu_features() if device.type == "cpu" else None
    if features is None:
        return None
    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return onednn and bool(BFLOAT16_INSTRUCTIONS & features)


def cpu_features() -> Set[str] | None:
    """The processor's features by Linux's names, from Linux or else from torch; None if neither tells."""
    with suppress(OSError):
        return parse_cpu_features(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    return None


def parse_cpu_features(cpuinfo: str) -> Set[str] | None:
    """The features that all processors in `/proc/cpuinfo` share: `flags` on x86, `Features` on ARM."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    sets = [set(values.split()) for key, _, values in lines if key.strip() in ("flags", "Features")]
    return set.intersection(*sets) if sets else None


@cache
def bfloat16_wins_probe(device: torch.device) -> bool:
    """Whether the fastest of many bfloat16 products beats the fastest in float32, the two taking turns.

    Measured once a process: a command that asks again must get the same precision.
    """
    float32 = bfloat16 = math.inf
    for _ in range(COMPARISON_RUNS):
        float32 = min(float32, _product_seconds(torch.float32, device))
        bfloat16 = min(bfloat16, _product_seconds(torch.bfloat16, device))
    return float32 > WORTHWHILE * bfloat16


def dtype_name(dtype: torch.dtype) -> str:
    """As `--dtype` and plans have it."""
    return str(dtype).removeprefix("torch.")


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions per second in matrix products, by a short probe."""
    seconds = min(_product_seconds(dtype, device) for _ in range(PROBE_RUNS))
    return PROBE_SIZE**3 / seconds


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """How long one matrix product takes, the result awaited."""
    square = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype, device=device)
    begin = time.perf_counter()
    F.linear(square[: PROBE_SIZE // 2], square)[0, 0].item()
    return time.perf_counter() - begin
