"""The ridge solver against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tinysleb.ridge import NormalEquations, solve

RANDOM = torch.Generator().manual_seed(3)
INPUTS, OUTPUTS, ROWS = 500, 40, 900


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows x, y and w, and the old weights; some inputs depend on others, as they do in models."""
    x = torch.randn(ROWS, INPUTS, generator=RANDOM)
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 2]
    y, w = torch.randn(ROWS, OUTPUTS, generator=RANDOM), torch.rand(ROWS, generator=RANDOM)
    return x, y, w, torch.randn(OUTPUTS, INPUTS, generator=RANDOM)


def equations(x: Tensor, y: Tensor, w: Tensor) -> NormalEquations:
    """In two groups of rows."""
    found = NormalEquations(INPUTS, OUTPUTS, x.device)
    for part in (slice(0, 300), slice(300, None)):
        found.add(x[part], y[part], w[part])
    return found


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("ridge", [0.1, 0.3, 10.0])
def test_least_squares_with_the_penalty_as_rows(ridge: float, direct: bool) -> None:
    x, y, w, old = problem()
    a, b = (np.asarray(t * w.sqrt()[:, None], dtype=np.float64) for t in (x, y))
    penalty = np.sqrt(ridge * np.square(a).sum(0).mean())
    expected = np.linalg.lstsq(
        np.vstack([a, penalty * np.eye(INPUTS)]), np.vstack([b, penalty * old.double().numpy().T]), rcond=None
    )[0].T
    found = solve(equations(x, y, w), old, ridge, direct=direct)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direct", [True, False])
def test_a_large_penalty_keeps_the_old_weights(direct: bool) -> None:
    x, y, w, old = problem()
    found = solve(equations(x, y, w), old, 1e7, direct=direct)
    torch.testing.assert_close(found, old, rtol=0, atol=1e-4)
