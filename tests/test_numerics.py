"""The precisions that `auto` takes, bfloat16 and float16, against transformers in float32 and in the same
precision.

Models have weights that bfloat16 holds exactly, so that only arithmetic is compared. The yardstick is what
transformers itself loses in the same precision with its plain attention. It rounds wherever tinysleb does
(the inputs and outputs of every product, rotated queries and keys, scores, probabilities, silu), and
besides that the residual stream after each addition, the norms' results, cosines and sines. Roundings are
independent errors, which add in variance: over many tokens, the root mean square of tinysleb's error may
not exceed transformers'. A mean of errors is at most their root mean square, so the same bound holds for
the loss of a model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor
from torch.nn import functional as F

from reference import block_cuts, make_variant, own_text, transformers_logits, without_sublayers
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.heal import walk
from tinysleb.heal.healed_weights import HealedTensors
from tinysleb.heal.walk import heal
from tinysleb.model.forward import mixed_in_chunks
from tinysleb.plan import Plan, Round
from tinysleb.search.cuts import KINDS
from tinysleb.search.kept_states import BASE, KeptStates
from tinysleb.search.rounds import search
from tinysleb.search.sweep import sweep

Run = Callable[..., Result]
Matrix = np.ndarray[Any, np.dtype[np.float64]]
DTYPES = [torch.bfloat16, torch.float16]
FAMILIES = ["llama", "llama biases", "qwen3", "phi3", "granite", "olmo2", "smollm3"]


def random_tokens(count: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 512, (count, length), generator=torch.Generator().manual_seed(seed))


def exact_model(name: str, folder: Path, embedding: float = 1.0) -> Any:
    """A tiny model whose weights bfloat16 holds exactly, saved in `folder`, in float32."""
    from transformers import AutoModelForCausalLM

    make_variant(name, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(embedding)
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    return model


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype)


def token_losses(model: Any, tokens: Tensor) -> Tensor:
    logits = transformers_logits(model, tokens)[:, :-1].double()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


def root_mean_square(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def reference_and_bound(model: Any, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Token losses in float32, and how far transformers is from them in `dtype`."""
    expected = token_losses(model, tokens)
    return expected, root_mean_square(token_losses(in_precision(model, dtype), tokens) - expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_no_further_from_float32_than_transformers(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of the whole model, and of it less each block."""
    model, tokens = exact_model(name, tmp_path), random_tokens(4, 100)
    losses = sweep(open_model(tmp_path), range(12), block_cuts(range(1, 5)), tokens, dtype)
    for removed, found in losses.items():
        shorter = model if removed == BASE else without_sublayers(model, [removed])
        expected, bound = reference_and_bound(shorter, tokens, dtype)
        assert root_mean_square(found - expected) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_stream_is_not_rounded(dtype: torch.dtype, tmp_path: Path) -> None:
    """Blocks that add a hundredth of what they are given. In float32 sums, the states' error is that of
    what was added, which at most 16 roundings of a token's way through a sublayer make: 16 u relative to
    it, u the unit roundoff. Rounding the states once costs more: uniformly up to half a spacing, which is
    at least u/2 relative, and so u/√12 at root mean square.
    """
    model, tokens = exact_model("llama", tmp_path, embedding=4096.0), random_tokens(4, 60)
    u = torch.finfo(dtype).eps / 2
    kept: list[Tensor] = []
    for at in (0, 5):
        model.model.layers[at].register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    transformers_logits(model, tokens)
    begin, expected = kept
    states = KeptStates(10**9)
    states.want([10], 1)
    sweep(open_model(tmp_path), range(12), block_cuts(range(1, 5)), tokens, dtype, states=states)
    error = root_mean_square(states.stream(range(4), BASE, 10) - expected)
    bound = 16 * u * root_mean_square(expected - begin)
    assert bound < u / 12**0.5 * root_mean_square(expected), "or rounding would not be seen"
    assert error <= bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates_come_in_order_where_their_losses_differ_by_more_than_the_error(
    dtype: torch.dtype, kind: str, tmp_path: Path
) -> None:
    """On text that the model predicts, so that it matters which block goes."""
    model = exact_model("llama", tmp_path)
    tokens = own_text(open_model(tmp_path), count=4, length=120, seed=0)
    compute = Compute(torch.device("cpu"), dtype, Budget(2**33, 0))
    *_, plan = search(
        open_model(tmp_path), tokens, Plan(6, 3, {}), compute,
        allowed=range(1, 5), kind=kind, exact=True, progress=lambda *_: None,
    )  # fmt: skip
    decided = 0
    for number, round_ in enumerate(plan.rounds):
        known = {
            cut: reference_and_bound(without_sublayers(model, [*plan.cuts[:number], cut]), tokens, dtype)
            for cut in round_.candidates
        }
        for cut, score in round_.candidates.items():
            expected, bound = known[cut]
            assert abs(score.loss - expected.mean().item()) <= bound
        ordered = sorted(known, key=lambda cut: known[cut][0].mean())
        for lower, higher in pairwise(ordered):
            gap = (known[higher][0].mean() - known[lower][0].mean()).item()
            if gap > known[lower][1] + known[higher][1]:
                decided += 1
                assert round_.candidates[lower].loss < round_.candidates[higher].loss
                assert round_.cut != higher
    assert decided >= 3


@pytest.mark.parametrize("window", [0, 90])
def test_attention_in_bfloat16_is_within_its_error_bound(window: int) -> None:
    """With u the unit roundoff, bfloat16 inputs, and sums in float32: scaling a query and storing a score
    move the score by at most 2 u Σ|q k|, so a probability by exp(4 u S) at most, S the largest such sum of
    the row; storing it and the result adds (1 + u)². All of it relative to Σ p |v|.
    """
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2, heads, 300, 16, generator=generator).bfloat16() for heads in (6, 2, 2)
    )
    mask = torch.ones(300, 300, dtype=torch.bool).tril()
    mask = mask.triu(1 - window) if window else mask
    found = mixed_in_chunks(queries, keys, values, mask if window else None, 0.3).float()
    q, k, v = (tensor.float() for tensor in (queries, keys, values))

    def attend(weighed: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, weighed, mask, scale=0.3, enable_gqa=True)

    u = torch.finfo(torch.bfloat16).eps / 2
    sums = (0.3 * q.abs() @ k.abs().repeat_interleave(3, dim=1).mT).masked_fill(~mask, 0)
    largest = sums.amax(-1, keepdim=True)
    bound = ((4 * u * largest).exp() * (1 + u) ** 2 - 1) * attend(v.abs())
    assert ((found - attend(v)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_healed_matrix_is_the_solution_in_float64(dtype: torch.dtype, tmp_path: Path) -> None:
    """Block 1 of a model without block 2, whose blocks add little to their states, solved by numpy in
    float64 from the states that transformers computes in float32. What tinysleb solves from differs by at
    most 16 roundings of the product's inputs, and of what blocks add (see above); the bound is what errors
    of that size do to the solution.
    """
    model, folder = exact_model("llama", tmp_path / "m", embedding=4096.0), tmp_path / "h"
    tokens = random_tokens(40, 48)
    folder.mkdir()
    compute, tensors = Compute(torch.device("cpu"), dtype, Budget(2**31, 0)), HealedTensors(folder)
    stack, check = Plan(6, 1, {}, rounds=(Round((4, 5), 0.0, {}),)).stack, random_tokens(8, 48, seed=2)
    heal(open_model(tmp_path / "m"), stack, tokens, check, compute, tensors, lambda _part: None)
    found = tensors.tensors["model.layers.1.mlp.down_proj.weight"].read_floats()
    expected = ridge_solution(model, tokens, 0)
    bound = np.linalg.norm(ridge_solution(model, tokens, 16 * torch.finfo(dtype).eps / 2) - expected)
    assert np.linalg.norm(found - expected) <= bound


def ridge_solution(model: Any, tokens: Tensor, error: float) -> Matrix:
    """What block 1's `mlp.down_proj` becomes if block 2 is left out, solved from rows with a relative
    error."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: Any) -> None:
        module.register_forward_pre_hook(lambda _module, args: kept.update({name: args[0]}))

    model = copy.deepcopy(model)
    layers = model.model.layers
    keep("inputs", layers[1].mlp.down_proj)
    keep("states", layers[1].post_attention_layernorm)
    keep("target", layers[3])
    transformers_logits(model, tokens)
    x, states, target = (kept[name].flatten(0, 1).double().numpy() for name in ("inputs", "states", "target"))
    random = np.random.default_rng(0)
    missing = target - states
    for rows in (x, missing):
        rows += error * np.sqrt(np.square(rows).mean()) * random.standard_normal(rows.shape)
    weight = 1 / np.square(target).mean(1)[:, None]
    old = layers[1].mlp.down_proj.weight.detach().double().numpy()
    gram = x.T @ (weight * x)
    penalty = walk.RIDGE * np.diag(gram).mean() * np.eye(len(gram))
    change: Matrix = np.linalg.solve(gram + penalty, x.T @ (weight * (missing - x @ old.T))).T
    solution: Matrix = old + walk.STEP * change
    return solution


@pytest.mark.parametrize("dtype", DTYPES)
def test_eval_in_the_precision_asked_for(dtype: torch.dtype, run: Run, tmp_path: Path) -> None:
    model, tokens = exact_model("qwen3", tmp_path / "m"), random_tokens(5, 80)
    np.save(tmp_path / "t.npy", tokens.numpy().astype(np.int32))
    name = str(dtype).removeprefix("torch.")
    result = run("eval", tmp_path / "m", "--tokens", "t.npy", "--dtype", name, "--json")
    assert result.exit_code == 0, result.output
    expected, bound = reference_and_bound(model, tokens, dtype)
    loss = json.loads(result.stdout)["loss"]
    assert 1e-6 < abs(loss - expected.mean().item()) <= bound, "or it was computed in float32"
