"""llama.cpp itself, through the package cyllama (the extra `llamacpp`): its logits, to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError

Logits = np.ndarray[Any, np.dtype[np.float32]]

PATIENCE = 300
"""Seconds that llama.cpp may take for a header; it takes one for a vocabulary of a quarter of a million."""
NOT_ASKED = 77
LOAD_HEADER = f"""
import sys
try:
    from cyllama.llama import llama_cpp
    params = llama_cpp.LlamaModelParams()
    params.no_alloc, params.use_mmap = True, False
except (ImportError, AttributeError):
    sys.exit({NOT_ASKED})
try:
    llama_cpp.LlamaModel(sys.argv[1], params, verbose=True)
except Exception:
    sys.exit(1)
"""


def is_installed() -> bool:
    """Whether a llama.cpp is there to compare with."""
    return find_spec("cyllama") is not None


def objection(path: Path) -> str:
    """Why llama.cpp does not load a GGUF, in its words; '' if it does, or cannot be asked.

    It reads all but the tensors' data, and is asked in a process of its own: for much that it does not
    expect, it ends the process. (A load of the vocabulary alone does that with every file, in this version.)
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD_HEADER, str(path)],
            capture_output=True, text=True, errors="replace", timeout=PATIENCE,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode in (0, NOT_ASKED):
        return ""
    said = [line for line in done.stderr.splitlines() if "error loading model:" in line or "ASSERT" in line]
    return said[-1].rpartition("error loading model: ")[2] if said else f"it ended with {done.returncode}"


def llama_cpp_logits(path: Path, tokens: Sequence[int]) -> Logits:
    """Logits `[T, vocabulary]` of a GGUF, with a float32 cache and without flash attention.

    Raises TinyslebError if llama.cpp does not load the file.
    """
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
        """`get_logits_ith` asks the model for a size that only its vocabulary has."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    llama_cpp.disable_logging()
    try:
        model = Model(str(path), llama_cpp.LlamaModelParams())
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(tokens))
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        context = llama_cpp.LlamaContext(model, params)
    except (ValueError, RuntimeError) as error:
        raise TinyslebError(f"llama.cpp does not load {path}: {error}") from error
    batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
    batch.set_batch(list(tokens), 0, True)
    context.decode(batch)
    return np.array([context.get_logits_ith(i) for i in range(len(tokens))], dtype=np.float32)
