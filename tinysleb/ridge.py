"""Ridge regression towards given weights, from normal equations: the maths of healing, as pure functions.

Minimised over W `[out, in]` is the sum over rows of w |y - W x|², plus a penalty on the distance from W₀ of
`ridge` times the mean of the diagonal of Σ w x xᵀ. Sums are float32; the factor is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinysleb.cholesky import InPlaceFactor

COLUMNS = 384
"""Columns of the Gram matrix computed at a time: what lies below the diagonal blocks is spared."""
OUTPUTS = 1024
"""Columns of the right-hand side that are solved for at a time where memory is scarce."""


class NormalEquations:
    """Σ w x xᵀ `[in, in]` (its upper part), and Σ w x yᵀ `[in, out]`, in float32."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.gram = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(inputs, outputs, device=device)

    def add(self, inputs: Tensor, outputs: Tensor, weight: Tensor) -> None:
        """Add rows: x `[m, in]`, y `[m, out]`, w `[m]`."""
        root = weight.sqrt().unsqueeze(1)
        x, y = inputs * root, outputs * root
        for start in range(0, x.shape[1], COLUMNS):
            self.gram[start : start + COLUMNS, start:].addmm_(x[:, start : start + COLUMNS].T, x[:, start:])
        self.cross.addmm_(x.T, y)

    @property
    def finite(self) -> bool:
        """Whether all sums are numbers; a weight that is not would show on the diagonal."""
        return bool(self.gram.diagonal().isfinite().all() and self.cross.isfinite().all())


def solve(
    equations: NormalEquations, old: Tensor, ridge: float, *, direct: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The solution W `[out, in]` in float32, and the factor of Σ w x xᵀ with the penalty, if there is one.

    `old` is W₀ `[out, in]`. The equations are used up. `direct`: by Cholesky's factor, lower, in float64 on
    the CPU; else by one in float32 in the matrix's place, a fifth of the memory, and refined.
    """
    gram, right, old = equations.gram, equations.cross, old.T.to(equations.cross)
    penalty = max(ridge * gram.diagonal().mean().item(), torch.finfo(torch.float32).tiny)
    right.add_(old, alpha=penalty)
    for start in range(0, len(gram), COLUMNS):  # the lower part from the upper, without a copy of all
        gram[start:, start : start + COLUMNS] = gram[start : start + COLUMNS, start:].T.clone()
    gram.diagonal().add_(penalty)
    if not direct:
        refined = InPlaceFactor(gram)
        for first in range(0, right.shape[1], OUTPUTS):
            part = slice(first, first + OUTPUTS)
            right[:, part] = refined.solve(right[:, part])
        return right.T, None
    factor = torch.linalg.cholesky(gram.cpu().double())
    return torch.cholesky_solve(right.cpu().double(), factor).float().to(right.device).T, factor
