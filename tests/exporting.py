"""What the tests of exported files share: writing one, and asking llama.cpp about it."""

from __future__ import annotations

import json
from collections.abc import Callable
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
