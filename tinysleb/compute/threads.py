"""PROVISIONAL: replaced by the compute helper."""

from __future__ import annotations

import torch


def use_threads(count: int | None) -> None:
    """Compute with so many threads."""
    if count is not None:
        torch.set_num_threads(count)
