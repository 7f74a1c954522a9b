"""Opening models: folders, shards, single files and GGUF give the same weights; bad ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from gguf.constants import GGUFValueType

from reference import LLAMA3_ROPE, make_llama, make_model, transformers_logits, transformers_model
from tinysleb.checkpoint.config import tensor_shapes
from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.huggingface_source import open_huggingface
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Retyped, Shortened, TensorInfo, Weights
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import copy_gguf
from tinysleb.export.huggingface import write_shards
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.safetensors_file import SafetensorsEntry
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.model.forward import forward
from tinysleb.sublayers import whole_blocks


def same_tensors(one: Weights, other: Weights) -> bool:
    return list(one.tensors) == list(other.tensors) and all(
        torch.equal(one.tensor(name).float(), other.tensor(name).float()) for name in one.tensors
    )


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))


def test_tensors_equal_the_models(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    expected = transformers_model(tiny_folder).state_dict()
    assert set(weights.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights.tensor(name), tensor)
        assert weights.tensors[name].shape == tuple(tensor.shape)
    assert torch.equal(weights.tensor("lm_head.weight", 5, 9), expected["lm_head.weight"][5:9])


def test_a_single_file_and_shards_are_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    whole = open_model(tiny_folder)
    assert same_tensors(open_model(tiny_folder / "model.safetensors"), whole)
    transformers_model(tiny_folder).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = open_model(tmp_path)
    assert set(sharded.tensors) == set(whole.tensors)
    assert all(torch.equal(sharded.tensor(name), whole.tensor(name)) for name in whole.tensors)


def test_a_gguf_is_the_folder(tiny_gguf: Path, tiny_folder: Path) -> None:
    gguf, folder = open_model(tiny_gguf), open_model(tiny_folder)
    assert gguf.config == folder.config
    assert set(gguf.tensors) == set(folder.tensors)
    for name in folder.tensors:
        assert torch.equal(gguf.tensor(name), folder.tensor(name)), name
    name = "model.layers.2.self_attn.k_proj.weight"
    assert torch.equal(gguf.tensor(name, 3, 7), folder.tensor(name)[3:7])


@pytest.mark.parametrize("rope", ["llama3", "linear"])
def test_rope_scaling_survives_a_gguf(rope: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    parameters = {"rope_type": rope, "rope_theta": 5e5, "factor": 8.0} | (extra if rope == "llama3" else {})
    folder = tmp_path / "m"
    make_llama(folder, rope_parameters=parameters)
    assert run("export", folder, "--gguf", "m.gguf", "--pre", "smollm").exit_code == 0
    assert open_model(tmp_path / "m.gguf").config == open_model(folder).config


def test_shortened_renumbers_lazily(tiny_folder: Path) -> None:
    source = open_model(tiny_folder)
    shorter = Shortened(source, whole_blocks((0, 2, 5)))
    assert list(shorter.tensors) == list(tensor_shapes(shorter.config))
    assert shorter.config.blocks == 3
    name = "mlp.up_proj.weight"
    assert torch.equal(shorter.tensor(f"model.layers.1.{name}"), source.tensor(f"model.layers.2.{name}"))
    assert torch.equal(shorter.tensor("lm_head.weight", 1, 3), source.tensor("lm_head.weight")[1:3])


REFUSED_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    "no family": ({"architectures": "DELETE", "model_type": "DELETE"}, "None"),
    "two families": ({"model_type": "qwen2"}, "`model_type` is 'qwen2', and `architectures` is"),
    "activation": ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
    "rope": ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "rope_type` is 'spiral'"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}, "intermediate_size": 12}, "'awq'"),
    "partial": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor` is 0.5",
    ),
    "llama3": ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4.0}}, "`rope: low_freq_factor` is 4"),
    "infinite": ({"rms_norm_eps": float("inf")}, "`rms_norm_eps` is inf"),
    "enormous": ({"rope_theta": 10**400, "rope_parameters": None}, "it has a number of 401 digits"),
    "blocks": ({"num_hidden_layers": 10**7}, "`num_hidden_layers` is 10000000"),
    "attention heads": ({"num_attention_heads": 3, "head_dim": None}, "`num_attention_heads` is 3"),
    "fp8 blocks": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
        r"`weight_block_size` is \[128\]",
    ),
    "heads": ({"num_key_value_heads": 3}, "4 attention heads do not divide into 3"),
    "negative": ({"num_hidden_layers": -1}, "`num_hidden_layers` is -1"),
    "text": ({"hidden_size": "64"}, "`hidden_size` is '64'"),
    "absent": ({"hidden_size": "DELETE"}, "no `hidden_size`"),
    "odd head": ({"head_dim": 15}, "15 of 15 dimensions rotate, which must be even"),
    "too many blocks": ({"num_hidden_layers": 7}, "9 missing: model.layers.6"),
    "too few blocks": ({"num_hidden_layers": 5}, "9 not part of this family: model.layers.5"),
    "vocabulary": ({"vocab_size": 513}, r"2 of the wrong shape: model.embed_tokens.weight is \[512, 64\]"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_a_config_not_modelled_is_refused(
    changes: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(TinyslebError, match=message) as caught:
        open_model(folder)
    assert str(folder) in caught.value.message


DEFAULTED = {
    "Qwen2ForCausalLM": ("use_sliding_window", "max_window_layers", "layer_types"),
    "SmolLM3ForCausalLM": ("rope_parameters", "no_rope_layers", "use_sliding_window"),
    "Phi3ForCausalLM": ("rms_norm_eps",),
    "Olmo2ForCausalLM": ("rms_norm_eps", "num_key_value_heads"),
}


@pytest.mark.parametrize("family", DEFAULTED)
def test_what_a_config_leaves_out_is_as_its_class_has_it(family: str, tmp_path: Path) -> None:
    window: dict[str, Any] = {} if family == "Olmo2ForCausalLM" else {"sliding_window": 12}
    folder = make_model(family, tmp_path / "m", num_key_value_heads=4, **window)
    edit_config(folder, **dict.fromkeys(DEFAULTED[family], "DELETE"))
    tokens = torch.randint(0, 512, (1, 40), generator=torch.Generator().manual_seed(0))
    expected = transformers_logits(transformers_model(folder), tokens)
    assert (forward(open_model(folder), tokens) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("block", [[32, 16], None])
def test_fp8_is_dequantised(block: list[int] | None, tiny_folder: Path, tmp_path: Path) -> None:
    """Against multiplying by hand, block by block."""
    folder = copy_of(tiny_folder, tmp_path)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": block})
    state = safetensors.torch.load_file(folder / "model.safetensors")
    expected = {}
    rows, columns = block or (10**6, 10**6)
    for name in [name for name in state if "_proj" in name]:
        whole = state[name] = (state[name] * 4).to(torch.float8_e4m3fn)
        grid = (-(-whole.shape[0] // rows), -(-whole.shape[1] // columns))
        scales = torch.rand(grid) + 0.5
        state[f"{name}_scale_inv"] = scales if block else scales[0, 0]
        expected[name] = torch.empty(whole.shape)
        for i in range(grid[0]):
            for j in range(grid[1]):
                part = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                expected[name][part] = whole[part].float() * scales[i, j]
    safetensors.torch.save_file(state, folder / "model.safetensors")
    weights = open_model(folder)
    for name, tensor in expected.items():
        assert torch.equal(weights.tensor(name), tensor.bfloat16())
        assert torch.equal(weights.tensor(name, 5, 30), tensor.bfloat16()[5:30])
    state.popitem()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(TinyslebError, match="FP8 weights need one"):
        open_model(folder)


def test_a_tied_head_that_is_stored_all_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    edit_config(folder, tie_word_embeddings=True)
    assert "lm_head.weight" in open_model(folder).tensors
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    assert "lm_head.weight" not in open_model(folder).tensors


SHARD = "model-00001-of-00001.safetensors"
INDEX_DAMAGE: dict[str, tuple[Callable[[dict[str, str]], Any], str]] = {
    "shard absent": (lambda m: m | {"x": "other.safetensors"}, "1 shards that are not there: other"),
    "outside": (lambda m: m | {"lm_head.weight": "../x.safetensors"}, "'../x.safetensors'"),
    "no text": (lambda m: m | {"lm_head.weight": 3}, "names the shard 3"),
    "extra in shard": (lambda m: {k: v for k, v in m.items() if k != "lm_head.weight"}, "lm_head.weight"),
    "absent in shard": (lambda m: m | {"x": SHARD}, "lacks 'x'"),
    "empty": (lambda _: {}, "`weight_map`"),
}


@pytest.mark.parametrize(("damage", "message"), INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_refused(
    damage: Callable[[dict[str, str]], Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    weight_map = dict.fromkeys(open_model(folder).tensors, SHARD)
    (folder / "model.safetensors").rename(folder / SHARD)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": damage(weight_map)}))
    with pytest.raises(TinyslebError, match=message):
        open_model(folder)


def test_what_is_no_model(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pickled").mkdir()
    shutil.copy(tiny_folder / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    shard = tmp_path / "pickled" / "model-00001-of-00002.safetensors"
    safetensors.torch.save_file({"x": torch.ones(1)}, shard)
    cases = {
        "nothing": "there is no file or folder",
        "pipe": "neither a file nor a folder",
        "text.txt": "not a model that tinysleb can read",
        "empty": r"no config.json",
        f"pickled/{shard.name}": "one shard of several",
    }
    for name, message in cases.items():
        with pytest.raises(TinyslebError, match=message):
            open_model(tmp_path / name)
    shard.unlink()
    with pytest.raises(TinyslebError, match="pickled weights"):
        open_model(tmp_path / "pickled")


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_an_input_that_changes_is_noticed(
    suffix: str, tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Even if it has as many bytes as before."""
    path = Path(shutil.copy(tiny_gguf, tmp_path))
    if suffix == "safetensors":
        path = copy_of(tiny_folder, tmp_path) / "model.safetensors"
    weights = open_model(path)
    weights.tensor("model.norm.weight")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(TinyslebError, match="changed while it was read"):
        weights.tensor("model.norm.weight")
    if isinstance(weights, GgufWeights):
        with pytest.raises(TinyslebError, match="changed while it was read"):
            copy_gguf(weights.file, tmp_path / "out.gguf", None)
        assert not (tmp_path / "out.gguf").exists()


class Counted:
    """A `Weights` that counts how often it is asked which tensors it has."""

    def __init__(self, source: Weights) -> None:
        self.source, self.asked = source, 0
        self.path, self.config, self.tensor = source.path, source.config, source.tensor

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        self.asked += 1
        return self.source.tensors


class CountedEntries(dict[str, SafetensorsEntry]):
    """Entries that count how often all of them are gone through."""

    asked = 0

    def items(self) -> Any:
        self.asked += 1
        return super().items()


def test_writing_a_folder_asks_once_what_tensors_there_are(tiny_folder: Path, tmp_path: Path) -> None:
    """Once for every model in the chain, and not once for every tensor."""
    source = Counted(open_model(tiny_folder))
    write_shards(
        Retyped(Shortened(source, whole_blocks((0, 2, 5))), lambda _name, info: info), tmp_path, 10**9
    )
    assert source.asked == 1
    healed = Counted(open_model(tiny_folder))
    write_shards(
        Healed(Shortened(healed, whole_blocks((0, 2, 5))), HealedTensors(tmp_path)), tmp_path, 50_000
    )
    assert healed.asked == 1


def test_a_folders_tensors_are_listed_once(tiny_folder: Path) -> None:
    weights = open_huggingface(tiny_folder)
    entries = CountedEntries(weights.entries)
    weights = replace(weights, entries=entries)
    for name in weights.tensors:
        weights.tensors[name]
    assert entries.asked == 1


def test_what_else_a_checkpoint_says(tiny_folder: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    assert open_model(folder).earlier_plan() == {}
    (folder / "tokenizer_config.json").write_text('{"chat_template": [{"name": "default", "template": "A"}]}')
    assert open_model(folder).chat_template() == "A"
    (folder / "chat_template.jinja").write_text("B")
    assert open_model(folder).chat_template() == "B"
    for damaged in ("[" * 100_000, "3", "{", '{"blocks": '):
        (folder / "plan.json").write_text(damaged)
        assert open_model(folder).earlier_plan() == {}
    file = read_gguf(tiny_gguf)
    for text, plan in (("[" * 100_000, {}), ("[3]", {}), ('{"removed": [3]}', {"removed": [3]})):
        value = GgufValue(text, GGUFValueType.STRING)
        changed = replace(file, metadata={**file.metadata, "tinysleb.plan": value})
        assert GgufWeights(tiny_gguf, changed, open_model(tiny_gguf).config).earlier_plan() == plan
