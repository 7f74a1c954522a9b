"""A short hash that tells one model from another without reading all of it."""

from __future__ import annotations

import hashlib

import torch

from tinysleb.checkpoint.config import block_prefix
from tinysleb.checkpoint.weights import Weights


def fingerprint(weights: Weights) -> str:
    """SHA-256 over the names, shapes and types of all tensors and the values of one norm of every block."""
    digest = hashlib.sha256()
    for name, info in sorted(weights.tensors.items()):
        digest.update(f"{name} {info.shape} {info.type}\n".encode())
    for index in range(weights.config.blocks):
        norm = weights.tensor(block_prefix(index) + "post_attention_layernorm.weight")
        digest.update(norm.to(torch.float32).numpy().tobytes())
    return digest.hexdigest()
