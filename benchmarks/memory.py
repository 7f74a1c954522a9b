"""Peak memory of pruning or healing a large random model: is `--memory` kept?

    python benchmarks/memory.py small --memory 640MiB
    python benchmarks/memory.py 7b --memory 2GiB
    python benchmarks/memory.py tinyllama --memory 1.1GiB
    python benchmarks/memory.py tinyllama --memory 1.5GiB --windows 64 --heal
    python benchmarks/memory.py 7b --memory 6GiB --windows 8 --distill

Writes random float16 weights of that shape (0.3 GB, 13.5 GB, 2.2 GB) into a temporary folder. Runs one round,
or heals the model without three blocks, or heals it and distils for a step, in a process of its own; prints
its peak resident memory and what the round read, and deletes the folder. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinysleb.checkpoint.config import config_from_huggingface, tensor_shapes
from tinysleb.formats.safetensors_file import write_safetensors
from tinysleb.formats.units import format_bytes

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "num_attention_heads": 32,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "small": LLAMA
    | {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 14, "vocab_size": 8192},
    "7b": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "tinyllama": LLAMA
    | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
}
RUN = """
import sys
from tinysleb.cli import main
try:
    main(prog_name="tinysleb")
finally:
    sys.stderr.writelines(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
"""A command that tells its own peak: what the system counts for a child begins with its parent's."""


def write_model(folder: Path, values: dict[str, Any]) -> None:
    """All blocks have the same random weights: drawing billions would take longer than the search."""
    shapes = tensor_shapes(config_from_huggingface(values, "shape"))
    (folder / "config.json").write_text(json.dumps(values))

    @cache
    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape).half() if len(shape) == 1 else (torch.randn(shape) * 0.02).half()

    entries = {name: ("F16", shape) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", entries, lambda name: [random(shapes[name])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--folder", type=Path, help="where there is space; default: the system's")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--distill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_model(folder, SHAPES[options.shape])
        tokens = np.random.default_rng(0).integers(0, 8192, (options.windows, options.window_length))
        np.save(folder / "tokens.npy", tokens.astype(np.int32))
        blocks = SHAPES[options.shape]["num_hidden_layers"]
        (folder / "p.json").write_text(json.dumps({"blocks": blocks, "removed": [blocks - 2, 10, 9]}))
        search, heal = ["prune", "--remove", "1", "--exact", "--no-heal"], ["heal", "--plan", "p.json"]
        heal += ["--distill-tokens", "2048"] if options.distill else ["--heal", "solve"]
        command = [
            sys.executable, "-c", RUN, *(heal if options.heal or options.distill else search), str(folder),
            "-o", "out", "--tokens", "tokens.npy", "--memory", options.memory, "--dtype", options.dtype,
        ]  # fmt: skip
        read, peak = measured(command, folder)
        size = (folder / "model.safetensors").stat().st_size
    print(
        f"{format_bytes(size)} on disk, --memory {options.memory}: peak resident {peak / 2**20:.0f} MiB, "
        f"a round read {read / size:.2f} times the model"
    )


def measured(command: list[str], folder: Path) -> tuple[int, int]:
    """Run a command, showing what it says: the bytes it had read when its round was over, and its peak."""
    read = peak = 0
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if line.startswith("VmHWM"):
                peak = int(line.split()[1]) * 1024
                continue
            sys.stderr.write(line)
            if line.startswith("round"):
                counters = Path(f"/proc/{process.pid}/io").read_text()
                read = int(counters.split("rchar: ")[1].split()[0])
    if process.returncode:
        sys.exit(process.returncode)
    return read, peak


if __name__ == "__main__":
    main()
