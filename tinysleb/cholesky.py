"""Cholesky's factor in float32 in the place of the matrix, for equations too wide to hold a copy of.

Golub and Van Loan, Matrix Computations, 4.2 (by blocks) and 3.5 (refinement).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 512
REFINEMENTS = 2
"""Steps that make up for the factor's float32: each divides what is left by thousands."""


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
        solution = self._substituted(right)
        for _ in range(REFINEMENTS):
            solution += self._substituted(right - self._product(solution))
        return solution

    def _substituted(self, right: Tensor) -> Tensor:
        found, matrix = right.clone(), self.matrix
        for block in self.blocks:
            known = matrix[block, : block.start] @ found[: block.start]
            found[block] = _triangular(matrix[block, block], found[block] - known)
        for block in reversed(self.blocks):
            known = matrix[block.stop :, block].T @ found[block.stop :]
            found[block] = _triangular(matrix[block, block].T, found[block] - known, upper=True)
        return found

    def _product(self, vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        for block, diagonal in zip(self.blocks, self.diagonal, strict=True):
            right = self.matrix[block, block.stop :]
            found[block] += diagonal @ vectors[block] + right @ vectors[block.stop :]
            found[block.stop :] += right.T @ vectors[block]
        return found


def _triangular(factor: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(factor, right, upper=upper)
    return found
