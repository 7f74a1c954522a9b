"""Which device and which precision are chosen, for processors other than the one that runs this test."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinysleb.compute import device as devices
from tinysleb.compute.device import (
    bfloat16_wins_probe,
    choose_device,
    choose_dtype,
    has_fast_bfloat16,
    parse_cpu_features,
)
from tinysleb.errors import TinyslebError

CPU = torch.device("cpu")
PROCESSORS = {
    "Haswell": ("flags", "fpu sse2 avx f16c fma avx2", False),
    "Skylake-X": ("flags", "fpu avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni", False),
    "Cooper Lake": ("flags", "fpu avx2 avx512f avx512_vnni avx512_bf16", True),
    "Zen 4": ("flags", "fpu avx2 avx512f avx512_bf16 avx512_vnni", True),
    "Sapphire Rapids": ("flags", "fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", True),
    "Graviton 2": ("Features", "fp asimd evtstrm aes crc32 asimdhp asimddp", False),
    "Graviton 3": ("Features", "fp asimd asimdhp sve i8mm bf16 svebf16", True),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("probe_says", [True, False])
def test_features_decide_the_precision(name: str, probe_says: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a probe in a busy moment would say."""
    key, features, fast = PROCESSORS[name]
    cpuinfo = f"processor\t: 0\nmodel name\t: {name}\n{key}\t\t: {features}\n\n" * 2
    monkeypatch.setattr(devices, "cpu_features", lambda: parse_cpu_features(cpuinfo))
    monkeypatch.setattr(devices, "bfloat16_wins_probe", lambda _device: probe_says)
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)


def test_only_features_of_all_processors_count() -> None:
    text = "flags : avx2 amx_bf16\n\nflags : avx2\n"
    assert parse_cpu_features(text) == {"avx2"}
    assert parse_cpu_features("hart : 0\nisa : rv64imafdc\n") is None


def test_torch_without_onednn_has_no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: {"amx_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_fast_bfloat16(CPU) is False


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)]
)
def test_capability_decides_on_a_gpu(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert has_fast_bfloat16(torch.device("cuda", 0)) is fast


def test_a_probe_decides_once_where_features_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but one run of the fast precision meet a busy moment; the second command meets only busy ones."""
    seconds = iter([1.0, 9.0] * 20 + [1.0, 0.5] + [1.0, 9.0] * 1000)
    monkeypatch.setattr(devices, "cpu_features", lambda: None)
    monkeypatch.setattr(devices, "_product_seconds", lambda _dtype, _device: next(seconds))
    bfloat16_wins_probe.cache_clear()
    chosen = [choose_dtype("auto", CPU) for _ in range(3)]
    bfloat16_wins_probe.cache_clear()
    assert chosen == [torch.bfloat16] * 3


def test_named_precisions_are_taken() -> None:
    assert [choose_dtype(name, CPU) for name in ("float32", "float16")] == [torch.float32, torch.float16]
    with pytest.raises(TinyslebError, match="'int8' is not a precision"):
        choose_dtype("int8", CPU)


def have(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: mps))


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"),
    [(0, False, "cpu"), (0, True, "mps"), (1, True, "cuda:0"), (2, False, "cuda:0")],
)
def test_auto_takes_a_gpu_if_there_is_one(
    gpus: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, gpus, mps)
    assert str(choose_device("auto")) == expected


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2, mps=False)
    assert [str(choose_device("cuda", rank)) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    with pytest.raises(TinyslebError, match="process 2 of this machine has no GPU: there are 2"):
        choose_device("auto", 2)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 0, mps=True)
    with pytest.raises(TinyslebError, match="has no cuda device") as caught:
        choose_device("cuda")
    assert caught.value.hint == "available: cpu, mps"
