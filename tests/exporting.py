"""What the tests of exported files share: writing one, and asking llama.cpp about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference import (
    llama_cpp_logits,
)
from tinysleb.checkpoint.open_model import open_model
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
