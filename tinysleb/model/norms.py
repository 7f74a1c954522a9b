"""The norm that a block's halves and the head begin with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 (arXiv 1910.07467)."""
    return F.rms_norm(hidden, weight.shape, weight, eps)
