"""Ridge regression towards given weights, from normal equations: the maths of healing, as pure functions.

Minimised over W `[out, in]` is the sum over rows of w |y - W x|², plus a penalty on the distance from W₀ of
`ridge` times the mean of the diagonal of Σ w x xᵀ. Sums are float32; the factor is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = 384
"""Columns of the Gram matrix computed at a time: what lies below the diagonal blocks is not computed."""
OUTPUTS = 1024
"""Columns of the right-hand side that are solved for at a time where memory is scarce."""
ROWS = 512
REFINEMENTS = 2
"""Steps that make up for the factor's float32: each divides the error by thousands."""


class NormalEquations:
    """Σ w x xᵀ `[in, in]` (its upper part), and Σ w x yᵀ `[in, out]`, in float32."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.gram = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(inputs, outputs, device=device)

    def add(self, inputs: Tensor, outputs: Tensor, weight: Tensor) -> None:
        """Add rows: x `[m, in]`, y `[m, out]`, w `[m]`."""
        root = weight.sqrt().unsqueeze(1)
        x, y = inputs * root, outputs * root
        add_to_gram(self.gram, x)
        self.cross.addmm_(x.T, y)

    @property
    def finite(self) -> bool:
        """Whether all sums are finite; an input that is not shows on the diagonal."""
        return bool(self.gram.diagonal().isfinite().all() and self.cross.isfinite().all())


def add_to_gram(gram: Tensor, x: Tensor) -> None:
    """Add xᵀ x of rows `[m, in]` to the upper part of `gram` `[in, in]`."""
    for start in range(0, x.shape[1], COLUMNS):
        gram[start : start + COLUMNS, start:].addmm_(x[:, start : start + COLUMNS].T, x[:, start:])


def fill_lower(gram: Tensor) -> None:
    """The lower part from the upper, without a copy of all."""
    for start in range(0, len(gram), COLUMNS):
        gram[start:, start : start + COLUMNS] = gram[start : start + COLUMNS, start:].T.clone()


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
    fill_lower(gram)
    gram.diagonal().add_(penalty)
    if not direct:
        refined = InPlaceFactor(gram)
        for first in range(0, right.shape[1], OUTPUTS):
            columns = slice(first, first + OUTPUTS)
            right[:, columns] = refined.solve(right[:, columns])
        return right.T, None
    factor = torch.linalg.cholesky(gram.cpu().double())
    return torch.cholesky_solve(right.cpu().double(), factor).float().to(right.device).T, factor


class InPlaceFactor:
    """The factor of a symmetric, positive definite `matrix` `[n, n]`, float32, which is used up.

    Its lower part becomes the factor; the upper part stays, and with copies of the blocks on the diagonal it
    is still the matrix, by which solutions are refined. Raises torch.linalg.LinAlgError if the matrix is not
    positive definite.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        size = len(matrix)
        self.blocks = [slice(start, min(start + ROWS, size)) for start in range(0, size, ROWS)]
        self.diagonal = [matrix[block, block].clone() for block in self.blocks]
        for number, block in enumerate(self.blocks):
            factor = torch.linalg.cholesky(matrix[block, block].cpu().double()).to(matrix)
            matrix[block, block] = factor
            below = matrix[block.stop :, block]
            below[:] = torch.linalg.solve_triangular(factor.T, below, upper=True, left=False)
            for other in self.blocks[number + 1 :]:
                left = matrix[other.start :, block]
                matrix[other.start :, other].addmm_(left, matrix[other, block].T, alpha=-1)

    def solve(self, right: Tensor) -> Tensor:
        """The solution for each column of `right` `[n, m]`."""
        solution = self._substitute(right)
        for _ in range(REFINEMENTS):
            solution += self._substitute(right - self._multiply(solution))
        return solution

    def _substitute(self, right: Tensor) -> Tensor:
        solution, matrix = right.clone(), self.matrix
        for block in self.blocks:
            known = matrix[block, : block.start] @ solution[: block.start]
            solution[block] = _solve_triangular(matrix[block, block], solution[block] - known)
        for block in reversed(self.blocks):
            known = matrix[block.stop :, block].T @ solution[block.stop :]
            solution[block] = _solve_triangular(matrix[block, block].T, solution[block] - known, upper=True)
        return solution

    def _multiply(self, vectors: Tensor) -> Tensor:
        product = torch.zeros_like(vectors)
        for block, diagonal in zip(self.blocks, self.diagonal, strict=True):
            right = self.matrix[block, block.stop :]
            product[block] += diagonal @ vectors[block] + right @ vectors[block.stop :]
            product[block.stop :] += right.T @ vectors[block]
        return product


def _solve_triangular(factor: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(factor, right, upper=upper)
    return solution
