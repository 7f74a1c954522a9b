"""llama.cpp itself, through the package cyllama (the extra `llamacpp`): its logits, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError

Logits = np.ndarray[Any, np.dtype[np.float32]]


def is_installed() -> bool:
    """Whether a llama.cpp is there to compare with."""
    try:
        import cyllama.llama.llama_cpp  # noqa: F401
    except ImportError:
        return False
    return True


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
