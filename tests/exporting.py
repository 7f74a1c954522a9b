"""What the tests of exported files share: writing one, and asking llama.cpp about it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from reference import (
    llama_cpp_logits,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.formats.gguf_file import GgufFile, read_gguf
from tinysleb.formats.tensor_types import WRITABLE
from tinysleb.model.forward import forward

Run = Callable[..., Any]
Means = Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]
TOKENS = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(7))
TOLERANCE = {"f32": 2e-3, "f16": 4e-3, "bf16": 3e-2, "q8_0": 6e-2}
"""Of the logits' range: llama.cpp rounds activations to the type of the weights."""


def exported(run: Run, folder: Path, type_: str) -> Path:
    result = run("export", folder, "--gguf", f"{type_}.gguf", "--type", type_, "--pre", "smollm")
    assert result.exit_code == 0, result.output
    return Path(f"{type_}.gguf").resolve()


def pruned(run: Run, model: Path, removed: list[int]) -> Path:
    Path("plan-in.json").write_text(json.dumps({"blocks": 6, "removed": removed}))
    suffix = ".gguf" if model.suffix == ".gguf" else ""
    out = Path(f"{model.stem}-cut{suffix}")
    result = run("prune", model, "--plan", "plan-in.json", "-o", out)
    assert result.exit_code == 0, result.output
    return out.resolve()


def agrees_with_llama_cpp(path: Path, tolerance: float) -> bool:
    ours = forward(open_model(path), TOKENS)[0].numpy()
    error = np.abs(llama_cpp_logits(path, TOKENS[0].tolist()) - ours).max()
    return bool(error <= tolerance * (ours.max() - ours.min()))


def by_llama_cpp(source: Path, option: str, out: Path) -> GgufFile:
    """A GGUF in another type, by llama.cpp's quantiser."""
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = int(gguf.LlamaFileType[WRITABLE[option].name]), 1
    llama_cpp.model_quantize(str(source), str(out), params)
    return read_gguf(out)


def types(file: GgufFile) -> dict[str, str]:
    """The type of each tensor."""
    return {name: tensor.type.name for name, tensor in file.tensors.items()}


def random_means(file: GgufFile) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Some importance for every matrix of the blocks, as llama.cpp's tool has it: none for the embedding."""
    random = np.random.default_rng(0)
    return {
        name: (random.random(tensor.shape[-1]) ** 4).astype(np.float32)
        for name, tensor in file.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) > 1
    }


def write_gguf_form(path: Path, means: Means, count: float = 8, general_type: str = "imatrix") -> Path:
    """An importance matrix in llama.cpp's newer form."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", general_type)
    writer.add_array("imatrix.datasets", ["some.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    for name, mean in means.items():
        writer.add_tensor(f"{name}.in_sum2", (mean * np.float32(count))[None])
        writer.add_tensor(f"{name}.counts", np.array([[count]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_binary_form(path: Path, means: Means, calls: int = 4) -> Path:
    """The same in the older form."""
    data = [struct.pack("<i", len(means))]
    for name, mean in means.items():
        text = name.encode()
        data.append(struct.pack(f"<i{len(text)}sii", len(text), text, calls, len(mean)))
        data.append((mean * np.float32(calls)).astype("<f4").tobytes())
    path.write_bytes(b"".join(data) + struct.pack("<ii8s", 7, 8, b"some.txt"))
    return path


def without_times(value: Any) -> Any:
    """JSON, of a plan for instance, without how long anything took."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "seconds"}
    return [without_times(item) for item in value] if isinstance(value, list) else value
