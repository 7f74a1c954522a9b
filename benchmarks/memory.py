"""Peak memory of pruning a large random model: is `--memory` kept?

    python benchmarks/memory.py --memory 1.1GiB

Writes a model of random float16 weights (TinyLlama's shape, 2.2 GB on disk) into a temporary folder, runs one
round in a process of its own, and prints that process's peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinysleb.config import config_from_huggingface, tensor_shapes
from tinysleb.memory import format_bytes
from tinysleb.safetensors_file import write_safetensors

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def write_model(folder: Path) -> None:
    shapes = tensor_shapes(config_from_huggingface(SHAPE, "shape"))
    (folder / "config.json").write_text(json.dumps(SHAPE))

    def random(name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shapes[name], dtype=torch.float16)
        return (torch.randn(shapes[name]) * 0.02).half()

    entries = {name: ("F16", shape) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", entries, random)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memory", default="1.1GiB")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window-length", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        tokens = np.random.default_rng(0).integers(0, 32000, (options.windows, options.window_length))
        np.save(folder / "tokens.npy", tokens.astype(np.int32))
        command = [
            sys.executable, "-m", "tinysleb", "prune", str(folder), "-o", str(folder / "out"),
            "--remove", "1", "--exact", "--tokens", str(folder / "tokens.npy"),
            "--memory", options.memory, "--dtype", options.dtype,
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=folder)
        size = (folder / "model.safetensors").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{format_bytes(size)} on disk, --memory {options.memory}: peak resident {format_bytes(peak)}")


if __name__ == "__main__":
    main()
