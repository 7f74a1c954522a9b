"""A Hugging Face folder without some blocks: weights, config and shards, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from exporting import TOKENS, TOLERANCE, Run, agrees_with_llama_cpp, exported, pruned
from reference import (
    make_llama,
    transformers_logits,
    transformers_model,
    without_blocks,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.model.forward import forward


def test_a_cut_folder_is_the_model_without_the_blocks(tiny_folder: Path, run: Run) -> None:
    folder = pruned(run, tiny_folder, [3, 1])
    expected = transformers_logits(without_blocks(transformers_model(tiny_folder), [1, 3]), TOKENS)
    assert (transformers_logits(transformers_model(folder), TOKENS) - expected).abs().max() <= 1e-5
    assert (forward(open_model(folder), TOKENS) - expected).abs().max() <= 1e-4
    assert agrees_with_llama_cpp(exported(run, folder, "f32"), TOLERANCE["f32"])


def test_per_block_lists_of_a_config_are_cut(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention"] * 6
    config["eos_token_id"] = [1, 2, 3, 4, 5, 6]
    config["bad_words_ids"] = [[7], [8], [9], [10], [11], [12]]
    config["keys_to_ignore_at_inference"] = ["a", "b", "c", "d", "e", "f"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    out = pruned(run, folder, [1, 2])
    cut = json.loads((out / "config.json").read_text())
    expected = config | {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    assert cut == expected
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.5}'
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_large_models_are_sharded(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    assert run("export", tiny_folder, "--hf", "out", "--shard-size", "200KB").exit_code == 0
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards) < 210_000
    expected = transformers_logits(transformers_model(tiny_folder), TOKENS)
    assert torch.equal(transformers_logits(transformers_model(tmp_path / "out"), TOKENS), expected)
    assert torch.equal(forward(open_model(tmp_path / "out"), TOKENS), expected)
