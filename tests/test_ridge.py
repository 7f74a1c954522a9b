"""The ridge solver against numpy's least squares, and rounding against plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.formats.gguf_file import Bytes
from tinysleb.formats.tensor_types import RECORDS
from tinysleb.heal import ridge
from tinysleb.heal.ridge import NormalEquations, solve
from tinysleb.heal.rounding import encode_fed_forward

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


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "ROWS", 96)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("ridge", [0.1, 0.3, 10.0])
def test_least_squares_with_the_penalty_as_rows(ridge: float, direct: bool) -> None:
    x, y, w, old = problem()
    a, b = (np.asarray(t * w.sqrt()[:, None], dtype=np.float64) for t in (x, y))
    penalty = np.sqrt(ridge * np.square(a).sum(0).mean())
    expected = np.linalg.lstsq(
        np.vstack([a, penalty * np.eye(INPUTS)]), np.vstack([b, penalty * old.double().numpy().T]), rcond=None
    )[0].T
    found, _ = solve(equations(x, y, w), old, ridge, direct=direct)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direct", [True, False])
def test_a_large_penalty_keeps_the_old_weights(direct: bool) -> None:
    x, y, w, old = problem()
    found, _ = solve(equations(x, y, w), old, 1e7, direct=direct)
    torch.testing.assert_close(found, old, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direct", [True, False])
def test_inputs_that_are_all_zero_keep_the_old_weights(direct: bool) -> None:
    x, y, w, old = problem()
    found, _ = solve(equations(0 * x, y, w), old, 0.3, direct=direct)
    torch.testing.assert_close(found, old)


@pytest.mark.parametrize("name", [record.name for record in RECORDS if record.few_bits])
def test_rounding_that_feeds_errors_forward_costs_less(name: str) -> None:
    """The cost of a deviation, measured on the rows themselves."""
    type_ = GGMLQuantizationType[name]
    x = torch.randn(2000, 256, generator=RANDOM) @ torch.randn(256, 512, generator=RANDOM)
    values = torch.randn(24, 512, generator=RANDOM)
    factor = torch.linalg.cholesky((x.T @ x).double() + 10 * torch.eye(512, dtype=torch.float64))

    def cost(data: Bytes) -> float:
        return ((decode(data, type_) - values) @ x.T).square().mean().item()

    plain, fed = encode(values, type_), encode_fed_forward(values, factor, type_)
    assert fed.shape == plain.shape
    assert cost(fed) < (0.75 if name == "Q2_K" else 0.6) * cost(plain)
