"""Memory: amounts as people write them, what each buffer is counted for, and the promise of `--memory`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinysleb.checkpoint.config import ModelConfig, config_from_huggingface
from tinysleb.compute.compute import compute_on
from tinysleb.compute.memory import (
    activation_bytes,
    block_bytes,
    head_bytes,
    least_bytes,
    reading_bytes,
    resident_bytes,
    rounded_up,
    sampling_bytes,
    streams_bytes,
)
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes, parse_bytes


def test_amounts() -> None:
    found = {text: parse_bytes(text) for text in ("4GiB", "900MB", "1.5 gib", "512", "2K", "3M", "2TB")}
    assert found == {
        "4GiB": 4 * 2**30, "900MB": 900 * 10**6, "1.5 gib": 3 * 2**29, "512": 512, "2K": 2000,
        "3M": 3 * 10**6, "2TB": 2 * 10**12,
    }  # fmt: skip
    assert format_bytes(3 * 2**29) == "1.5 GiB"
    assert format_bytes(100) == "100 B"


@pytest.mark.parametrize("text", ["", "4 PiB", "-1GiB", "1.2.3MB", "much", "."])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(TinyslebError, match="is not a size"):
        parse_bytes(text)


def test_this_process_holds_something() -> None:
    assert 10**7 < resident_bytes() < 10**11


SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160, "vocab_size": 1000,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip


def config(**changes: object) -> ModelConfig:
    return config_from_huggingface(SHAPE | changes, "shape")


def test_what_each_buffer_takes() -> None:
    """By hand: 4 heads of 16, 2 of them with keys and values."""
    query_and_output, key_and_value, fed_forward, norms = 2 * 64 * 64, 2 * 32 * 64, 3 * 160 * 64, 2 * 64
    block = query_and_output + key_and_value + fed_forward + norms
    assert block_bytes(config(), 2) == 2 * block
    assert reading_bytes(config()) == 8 * 160 * 64
    assert activation_bytes(config(), 10) == 10 * (3 * 160 + 8 * 64) * 4
    assert head_bytes(config(), 2) == 2048 * 64 * (4 + 4 + 2) + 1024 * 2048 * (4 + 4)
    assert streams_bytes(config(), 4, 100) == (4 + 3) * 100 * 64 * 4
    model = 6 * 2 * block + 2 * 1000 * 64 * 2 + 1000 * 64 * 4
    cache = 6 * 2 * 5 * 2 * 30 * 16 * 2
    logits, drawing = 5 * 1000 * 2, 8 * 1000 * (4 + 4 + 4 + 4)
    activations = 5 * (3 * 160 + 8 * 64) * 4
    assert sampling_bytes(config(), 5, 30, 2) == model + cache + logits + drawing + activations
    tied = sampling_bytes(config(tie_word_embeddings=True), 5, 30, 2)
    assert tied == model + cache + logits + drawing + activations - 1000 * 64 * 2


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_the_memory_given_is_kept() -> None:
    """A search through a model of 300 MB in less memory than it takes, by a process's own peak."""
    benchmark = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    begin = "import tinysleb.search.run; from tinysleb.compute.memory import *; print(resident_bytes())"
    resident = int(subprocess.check_output([sys.executable, "-c", begin]))
    shape = config(
        hidden_size=1024, intermediate_size=2048, num_hidden_layers=14, vocab_size=8192,
        num_attention_heads=32, num_key_value_heads=32,
    )  # fmt: skip
    item = compute_on().dtype.itemsize
    memory = rounded_up(least_bytes(shape, 12, 128, item, resident)) + 2**24
    words = ["small", "--memory", str(memory), "--window-length", "128"]
    done = subprocess.run([sys.executable, str(benchmark), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(re.findall(r"peak resident (\d+) MiB", done.stdout)[0]) * 2**20
    assert peak <= memory < resident + 14 * block_bytes(shape, 2)
