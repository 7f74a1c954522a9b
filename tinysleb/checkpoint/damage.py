"""Which tensor of a model is to blame for a result that is not a finite number."""

from __future__ import annotations

from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError

VALUES_AT_ONCE = 2**22
DAMAGED = "the file is damaged; fetch or convert it again"


def first_damaged_tensor(weights: Weights) -> str | None:
    """The first tensor with a value that is not finite, read some rows at a time; None if there is none."""
    return next((name for name in weights.tensors if not _is_finite(weights, name)), None)


def _is_finite(weights: Weights, name: str) -> bool:
    rows, *columns = weights.tensors[name].shape
    step = max(1, VALUES_AT_ONCE // (columns[0] if columns else 1))
    return all(
        bool(weights.tensor(name, start, min(start + step, rows)).isfinite().all())
        for start in range(0, rows, step)
    )


def not_finite(weights: Weights, what: str) -> TinyslebError:
    """The error to raise where `what`, computed from `weights`, is not finite: it names the damaged tensor.

    Without one, numbers overflowed on the way.
    """
    name = first_damaged_tensor(weights)
    if name is not None:
        return TinyslebError(f"{weights.path}: {name} holds values that are not finite numbers", DAMAGED)
    return TinyslebError(
        f"{weights.path}: {what} is not a finite number, though all weights are",
        "numbers may overflow in this precision; try --dtype float32",
    )
