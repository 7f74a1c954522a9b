"""Short hashes that tell one model, or one file of it, from another without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinysleb.checkpoint.config import block_prefix
from tinysleb.checkpoint.gguf_names import gguf_name
from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.weights import Weights

if TYPE_CHECKING:
    import numpy as np

NORM = "post_attention_layernorm.weight"


def fingerprint(weights: Weights) -> str:
    """SHA-256 of one file of a model: all tensors' names, shapes and types, and one norm of every block."""
    digest = hashlib.sha256()
    for name, info in sorted(weights.tensors.items()):
        digest.update(f"{name} {info.shape} {info.type}\n".encode())
    return _add_norms(digest, weights)


def model_fingerprint(weights: Weights) -> str:
    """SHA-256 of a model: values of one norm of every block. The same for all files of it, since none of them
    quantises norms."""
    return _add_norms(hashlib.sha256(f"{weights.config.vocab_size}\n".encode()), weights)


def stored_types(weights: Weights) -> str:
    """The types that a file stores tensors in, by name."""
    return " ".join(sorted({info.type for info in weights.tensors.values()}))


def is_same_model(settings: Mapping[str, Any], weights: Weights) -> bool:
    """Whether a plan with these settings was made for this model, be it for another file of it.

    A plan that does not say which model it was made for is taken to be for this one.
    """
    if settings.get("fingerprint") in (None, fingerprint(weights)):
        return True
    same = settings.get("model_fingerprint") == model_fingerprint(weights)
    return same and settings.get("types") != stored_types(weights)


def _add_norms(digest: hashlib._Hash, weights: Weights) -> str:
    for name in (block_prefix(index) + NORM for index in range(weights.config.blocks)):
        if name in weights.tensors:
            digest.update(_vector(weights, name).tobytes())
    return digest.hexdigest()


def _vector(weights: Weights, name: str) -> np.ndarray[Any, Any]:
    """A norm in float32; of a GGUF without torch, which takes seconds to import."""
    if isinstance(weights, GgufWeights):
        return weights.file.read_floats(gguf_name(name, weights.config.architecture))
    values: np.ndarray[Any, Any] = weights.tensor(name).float().numpy()
    return values
