"""Folders of weights as people have them: shards, indices, and what lies beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from real_files.conditions import Condition, check, command, refused, rows, same_logits

from reference import make_model, transformers_model

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def sharded(change: Callable[[Path], None] = lambda _: None, **config: Any) -> Callable[[Path], Path]:
    """A tiny Llama in several files and an index, changed."""

    def make(folder: Path) -> Path:
        make_model("LlamaForCausalLM", folder, **config)
        model = transformers_model(folder)
        (folder / SINGLE).unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        change(folder)
        return folder

    return make


def list_a_head(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))


def leave_an_index(folder: Path) -> None:
    weight_map = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def keep_a_consolidated_copy(folder: Path) -> None:
    """Of another layout and with other names, as Mistral publishes it."""
    copy = {"tok_embeddings.weight": torch.zeros(512, 64)}
    safetensors.torch.save_file(copy, folder / "consolidated.safetensors")


def drop_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def drop_metadata(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))


def drop_a_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def single(change: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_model("LlamaForCausalLM", folder)
        change(folder)
        return folder

    return make


def mix_dtypes(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / SINGLE)
    for number, name in enumerate(sorted(state)):
        state[name] = state[name].to([state[name].dtype, torch.float64][number % 2])
    safetensors.torch.save_file(state, folder / SINGLE, metadata={"format": "pt"})


def reorder(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / SINGLE)
    safetensors.torch.save_file(dict(reversed(state.items())), folder / SINGLE, metadata={"format": "pt"})


def drop_format(folder: Path) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(folder / SINGLE), folder / SINGLE)


def add_extra(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / SINGLE)
    state["model.layers.0.mlp.up_proj.lora_A"] = state["model.norm.weight"].clone()
    safetensors.torch.save_file(state, folder / SINGLE, metadata={"format": "pt"})


def prefix_all(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / SINGLE)
    safetensors.torch.save_file({f"base_model.model.{k}": v for k, v in state.items()}, folder / SINGLE)


def opens(folder: Path) -> None:
    status, said = command("inspect", folder)
    assert status == 0, said


@rows(
    Condition(
        "an index that lists a tied head which no shard holds",
        sharded(list_a_head, tie_word_embeddings=True),
        "transformers ties it; saved so by tools that drop shared tensors after the index is made",
        same_logits,
    ),
    Condition(
        "a stale index beside a complete model.safetensors",
        single(leave_an_index),
        "transformers looks for the single file first",
        same_logits,
    ),
    Condition(
        "a consolidated copy beside the shards",
        sharded(keep_a_consolidated_copy),
        "transformers goes by the index, the converter by the names model*.safetensors",
        same_logits,
    ),
    Condition(
        "an index without metadata",
        sharded(drop_metadata),
        "transformers 5 refuses it, the converter does not look; what it says is not needed",
        opens,
    ),
    Condition(
        "shards without an index",
        sharded(drop_index),
        "transformers finds no weights",
        refused("has no model.safetensors", INDEX),
    ),
    Condition(
        "a shard that was not fetched",
        sharded(drop_a_shard),
        "transformers says which file is absent",
        refused(INDEX, "names 1 shards that are not there", "model-00002-of-"),
    ),
    Condition(
        "tensors of several dtypes",
        single(mix_dtypes),
        "transformers converts them all to the one that is asked for",
        same_logits,
    ),
    Condition("tensors in another order", single(reorder), "order says nothing", same_logits),
    Condition(
        "no format in the header's metadata",
        single(drop_format),
        "transformers 4 refused it; 5 and the converter take it",
        same_logits,
    ),
    Condition(
        "an adapter's tensors among the model's",
        single(add_extra),
        "transformers drops them with a warning, the converter stops at them: so do we",
        refused("not part of this family", "lora_A"),
    ),
    Condition(
        "every name with a prefix, as PEFT saves it",
        single(prefix_all),
        "transformers makes up random weights with a warning; the converter stops",
        refused("missing: model.embed_tokens.weight", "base_model.model."),
    ),
)
def test_folders(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path / "model")
