"""Which device to compute on, and in which precision."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

from tinysleb.compute.memory import Budget, give_back_freed, resident_bytes
from tinysleb.errors import TinyslebError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE_SIZE, PROBE_RUNS = 1024, 8
PROBED = (torch.float32, torch.bfloat16)
WORTHWHILE = 1.3
"""How much faster bfloat16 must be than float32 to be chosen."""


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes a GPU if there is one; of several, the one with this process's number.

    Raises TinyslebError if the device asked for is not there.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[name]:
        raise TinyslebError(f"--device {name}: this machine or this build of torch has none")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise TinyslebError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
            "start as many processes as there are GPUs, or use --device cpu",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def device_budget(device: torch.device, total: int) -> Budget:
    """The memory a search may use: of the process or, on a GPU, what is free of `total` there."""
    if device.type != "cuda":
        give_back_freed()
        return Budget(total, resident_bytes())
    free, _ = torch.cuda.mem_get_info(device)
    return Budget(min(total, free), 0)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where a short probe finds its matrix products faster, else float32.

    The probe is the same for all models, takes both in turn, and counts the fastest run of each, so that
    a busy machine hardly ever changes the answer.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise TinyslebError(f"{name!r} is no precision", f"known: auto, {', '.join(DTYPES)}")
    runs = [[_product_seconds(dtype, device) for dtype in PROBED] for _ in range(PROBE_RUNS)]
    float32, bfloat16 = (min(seconds) for seconds in zip(*runs, strict=True))
    return torch.bfloat16 if float32 > WORTHWHILE * bfloat16 else torch.float32


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
