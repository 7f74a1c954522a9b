"""Storing blocks in other types: against outputs computed by transformers, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from reference import make_llama, make_variant, transformers_model
from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import TensorInfo, Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.formats.tensor_types import RECORDS
from tinysleb.heal import rounding_walk
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.heal.rounding_walk import RoundedBlock, RoundingMemory, plan_rounding_memory, round_blocks
from tinysleb.model.forward import forward

COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**32, 0))
WINDOWS, OTHERS = torch.randint(3, 400, (2, 24, 48), generator=torch.Generator().manual_seed(7))
Q4_0, Q4_K, Q8_0, F16 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_K", "Q8_0", "F16"))
FEW_BITS = [record.name for record in RECORDS if record.few_bits and record.encoded]


def matrices_as(type_: GGMLQuantizationType) -> Callable[[str, TensorInfo], GGMLQuantizationType | None]:
    return lambda _name, info: type_ if len(info.shape) == 2 else None


def rounded(
    weights: Weights,
    wanted: Callable[[str, TensorInfo], GGMLQuantizationType | None],
    folder: Path,
    compute: Compute = COMPUTE,
) -> tuple[Healed, list[RoundedBlock]]:
    folder.mkdir()
    tensors = HealedTensors(folder)
    blocks = round_blocks(weights, wanted, WINDOWS, compute, tensors, lambda _done: None)
    return Healed(weights, tensors), blocks


def plainly(weights: Weights, type_: GGMLQuantizationType, folder: Path) -> Healed:
    folder.mkdir()
    tensors = HealedTensors(folder)
    for name, info in weights.tensors.items():
        if "layers" in name and len(info.shape) == 2:
            tensors.add(name, info.shape, encode(weights.tensor(name), type_), type_)
    return Healed(weights, tensors)


def divergence(weights: Weights, model: Weights) -> float:
    """Mean KL to the original on windows that the walk has not seen."""
    original, other = (forward(each, OTHERS[:8]).log_softmax(-1) for each in (weights, model))
    return float((original.exp() * (original - other)).sum(-1).mean())


def inputs_by_transformers(model: Any, module: torch.nn.Module, windows: Tensor) -> Tensor:
    """What a module gets, `[rows, in]`."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    with torch.no_grad():
        model(windows)
    handle.remove()
    return found[0].flatten(0, 1)


@pytest.mark.parametrize(
    ("name", "dtype"), [("Q4_0", torch.bfloat16), *((name, torch.float32) for name in FEW_BITS)]
)
def test_outputs_come_nearer_than_by_plain_rounding(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of the first block's matrices, whose inputs are the original's and those of what is stored below."""
    folder = make_llama(tmp_path / "m", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    weights, type_ = open_model(folder), GGMLQuantizationType[name]
    found, _ = rounded(weights, matrices_as(type_), tmp_path / "r", replace(COMPUTE, dtype=dtype))
    model = transformers_model(folder).float()
    layer = model.model.layers[0]
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"):
        x = inputs_by_transformers(model, layer.get_submodule(part), WINDOWS)
        old = weights.tensor(f"model.layers.0.{part}.weight").float()
        plain = decode(encode(old, type_), type_)
        fed = found.tensor(f"model.layers.0.{part}.weight").float()
        errors = [float((x @ (each - old).T).square().sum()) for each in (fed, plain)]
        assert errors[0] < 0.9 * errors[1], part


@pytest.mark.parametrize(
    "name", ["llama", "llama biases", "granite", "phi3", "qwen2", "qwen3", "smollm3", "olmo2"]
)
def test_every_family_diverges_less_than_by_plain_rounding(name: str, tmp_path: Path) -> None:
    weights = open_model(make_variant(name, tmp_path / "m"))
    found, blocks = rounded(weights, matrices_as(Q4_0), tmp_path / "r")
    assert [block.block for block in blocks] == list(range(weights.config.blocks))
    assert all(block.types == ("Q4_0",) and 0 < block.error < 0.1 for block in blocks)
    assert divergence(weights, found) < divergence(weights, plainly(weights, Q4_0, tmp_path / "p"))


def test_what_needs_no_care_is_encoded_plainly_and_what_is_not_wanted_stays(tmp_path: Path) -> None:
    weights = open_model(make_variant("llama biases", tmp_path / "m"))
    types = {"mlp.up_proj.weight": Q8_0, "mlp.up_proj.bias": F16, "input_layernorm.weight": F16}
    names = {f"model.layers.2.{name}": type_ for name, type_ in types.items()}
    found, blocks = rounded(weights, lambda name, _: names.get(name), tmp_path / "r")
    assert blocks == [RoundedBlock(2, ("F16", "Q8_0"), 0.0)]
    assert set(found.healed.tensors) == set(names)
    for name, type_ in names.items():
        old = weights.tensor(name)
        expected = decode(encode(old.view(-1, old.shape[-1]), type_), type_)
        assert torch.equal(found.tensor(name).float().view_as(expected), expected)


def test_one_wanted_matrix_of_a_half_leaves_its_neighbours(tmp_path: Path) -> None:
    weights = open_model(make_variant("phi3", tmp_path / "m"))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    found, blocks = rounded(weights, lambda each, _: Q4_0 if each == name else None, tmp_path / "r")
    assert set(found.healed.tensors) == {name}
    assert [block.block for block in blocks] == [1]
    assert found.tensors[name].shape == weights.tensors[name].shape


def test_rows_at_a_time_and_a_file_for_the_states_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_model(make_llama(tmp_path / "m"))
    expected, blocks = rounded(weights, matrices_as(Q4_0), tmp_path / "r")
    plan = RoundingMemory(inputs=10**6, streams=False, ahead=False)
    monkeypatch.setattr(rounding_walk, "plan_rounding_memory", lambda *_: plan)
    monkeypatch.setattr(rounding_walk, "ROUNDED_AT_ONCE", 64 * 10)
    found, like = rounded(weights, matrices_as(Q4_0), tmp_path / "s")
    for name in (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"):
        same = found.tensor(name) == expected.tensor(name)  # sums of other order round some otherwise
        assert same.float().mean() > 0.95, name
    assert [block.error for block in like] == pytest.approx([block.error for block in blocks], rel=0.05)


def test_with_little_memory_scales_are_weighted_by_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_llama(tmp_path / "m", hidden_size=512, intermediate_size=768)
    weights = open_model(folder)
    plan = RoundingMemory(inputs=0, streams=True, ahead=False)
    monkeypatch.setattr(rounding_walk, "plan_rounding_memory", lambda *_: plan)
    name = "model.layers.0.mlp.gate_proj.weight"
    found, _ = rounded(weights, lambda each, _: Q4_K if each == name else None, tmp_path / "r")
    model = transformers_model(folder).float()
    x = inputs_by_transformers(model, model.model.layers[0].mlp.gate_proj, WINDOWS)
    old = weights.tensor(name).float()
    expected = decode(encode(old, Q4_K, x.square().sum(0)), Q4_K)
    assert (found.tensor(name) == expected).float().mean() > 0.99  # sums of other order round otherwise


def test_memory_is_divided_and_too_little_says_how_much(tmp_path: Path) -> None:
    config = open_model(make_llama(tmp_path / "m")).config
    plans = [
        plan_rounding_memory(config, (40, 48), replace(COMPUTE, memory=Budget(total, 0)))
        for total in range(2**29, 2**30, 2**14)
    ]
    assert {plan.inputs for plan in plans} >= {config.intermediate}
    assert plans[-1] == RoundingMemory(config.intermediate, streams=True, ahead=True)
    with pytest.raises(TinyslebError, match="too little for rounding") as caught:
        plan_rounding_memory(config, (40, 48), replace(COMPUTE, memory=Budget(2**18, 0)))
    assert "would do" in str(caught.value.hint)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    model = transformers_model(folder)
    with torch.no_grad():
        model.model.layers[4].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(TinyslebError, match=r"layers\.4\.mlp\.up_proj\.weight holds values"):
        rounded(open_model(folder), matrices_as(Q4_0), tmp_path / "r")
