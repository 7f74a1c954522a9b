"""Steps trained in matrices as they are stored: bytes, gradients, and that they help."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from torch.nn import functional as F

from reference import make_llama, make_variant, transformers_model, without_blocks
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.k_quant_layouts import LAYOUTS
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.heal import repair as repair_module
from tinysleb.heal.change import parameters
from tinysleb.heal.step_factors import StepFactors, unit_factors, with_steps
from tinysleb.heal.student import Student, teach
from tinysleb.sublayers import whole_blocks

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**31, 0))
TOKENS = torch.randint(3, 400, (64, 32), generator=torch.Generator().manual_seed(5))
KEPT = (0, 1, 4, 5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_trained_steps_are_what_the_forward_pass_had(name: str) -> None:
    """By the gguf package's decoding. Float16 steps are good to 2⁻¹¹."""
    generator = torch.Generator().manual_seed(1)
    type_ = GGMLQuantizationType[name]
    data = encode(torch.randn(6, 1024, generator=generator), type_)
    before = torch.from_numpy(dequantize(data, type_))
    new = unit_factors({"model.layers.0.x.weight": type_}, 2048)(0, {"x.weight": before}, generator)
    (change,) = new.values()
    assert isinstance(change, StepFactors)
    for parameter in change.parameters:
        parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    after = torch.from_numpy(dequantize(with_steps(data, type_, [change]), type_))
    expected = change.merged(before, torch.float32)
    assert (after - expected).abs().max() <= 2**-9 * before.abs().max()
    assert (expected - before).abs().max() > 2**-4 * before.abs().max()


def test_gradients_are_sums_of_those_of_the_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of transformers' whole graph: Σ over a block's columns of gradient · weight."""
    folder = make_llama(tmp_path / "m")
    weights = open_model(folder)
    shortened = Shortened(weights, whole_blocks(KEPT))
    types = dict.fromkeys(shortened.tensors, GGMLQuantizationType.Q4_0)
    student = Student(shortened, 1, COMPUTE, unit_factors(types, 64), resident=True, seed=0)
    found: dict[int, list[Tensor]] = {}

    def keep(index: int, _factors: object, gradients: list[Tensor], _rate: float) -> None:
        found[index] = gradients

    monkeypatch.setattr(student, "_update", keep)
    student.learn(teach(weights, TOKENS[:3], 1, COMPUTE, ahead=False), 1.0)
    model = transformers_model(folder)
    with torch.no_grad():
        original = model(TOKENS[:3]).logits.log_softmax(-1).flatten(0, 1)
    shorter = without_blocks(model, [2, 3])
    own = shorter(TOKENS[:3], use_cache=False).logits.log_softmax(-1).flatten(0, 1)
    torch.autograd.backward(F.kl_div(own, original, log_target=True, reduction="batchmean"))
    named = dict(shorter.named_parameters())
    for index, gradients in found.items():
        assert len(gradients) == len(list(parameters(student.changes[index]))) == 7
        for name, gradient in zip(student.changes[index], gradients, strict=True):
            matrix = named[f"model.layers.{index}.{name}"]
            assert matrix.grad is not None
            expected = (matrix.grad * matrix.detach()).view(len(matrix), -1, 32).sum(-1)
            assert ((gradient - expected).norm() / expected.norm()).item() < 1e-4, name


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text('{"blocks": 6, "removed": [3, 1]}')
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    return Path("p.json")


FEW = ("--tokens", "t.npy", "--heal-tokens", 2000, "--distill-tokens", 8192)


def export_(run: Run, folder: Path, type_: str) -> Path:
    done = run("export", folder, "--gguf", "m.gguf", "--type", type_, "--pre", "smollm")
    assert done.exit_code == 0, done.output
    return Path("m.gguf")


@pytest.mark.parametrize(("family", "type_"), [("llama", "q4_0"), ("phi3", "q4_1")])
def test_what_is_stored_comes_nearer(family: str, type_: str, plan: Path, run: Run, tmp_path: Path) -> None:
    """With the same codes, and types as before."""
    folder = make_variant(family, tmp_path / "m")
    model = export_(run, folder, type_)
    result = run("heal", model, "--plan", plan, "-o", "out.gguf", *FEW, "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    steps = json.loads(result.stdout)["healing"]["distilled"]["steps"]
    (_, before), *_, _ = steps["divergence"]
    assert steps["tokens"] == 2048
    assert min(loss for _, loss in steps["divergence"]) < before
    assert not list(Path().glob("*.unfinished*"))
    whole, cut = open_model(model), open_model(Path("out.gguf"))
    assert cut.config.blocks == 4
    assert {info.type for info in cut.tensors.values()} == {info.type for info in whole.tensors.values()}


def test_a_folder_of_floats_has_no_steps(plan: Path, tiny_folder: Path, run: Run) -> None:
    result = run("heal", tiny_folder, "--plan", plan, "-o", "out", *FEW, "--json")
    assert result.exit_code == 0, result.output
    distilled = json.loads(result.stdout)["healing"]["distilled"]
    assert "steps" not in distilled
    assert distilled["tokens"] == 8192


def test_resumed_after_the_first_part(
    plan: Path, tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the parts: the first is not run again, and the file is the same."""
    model = export_(run, tiny_folder, "q4_0")
    heal = partial(run, "heal", model, "--plan", plan, *FEW)
    assert heal("-o", "whole.gguf").exit_code == 0
    with monkeypatch.context() as broken:
        broken.setattr(repair_module, "unit_factors", raise_)
        assert isinstance(heal("-o", "again.gguf").exception, RuntimeError)
    assert Path("again.gguf.unfinished.npz").is_file()
    result = heal("-o", "again.gguf", "--resume")
    assert result.exit_code == 0, result.output
    assert "distillation continues after 6144 tokens" in result.output
    whole, again = open_model(Path("whole.gguf")), open_model(Path("again.gguf"))
    assert all(torch.equal(whole.tensor(name), again.tensor(name)) for name in whole.tensors)
    assert not list(Path().glob("*.unfinished*"))


def raise_(*_: object) -> None:
    raise RuntimeError("the power went out")
