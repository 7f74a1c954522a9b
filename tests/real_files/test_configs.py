"""`config.json` as people have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from real_files.conditions import (
    Condition,
    check,
    command,
    edit_json,
    edited,
    refused,
    rows,
    same_logits,
    told,
)

from reference import LLAMA3_ROPE, LONG_ROPE, make_model

LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
TRANSFORMERS = "transformers computes with it"
IGNORED = "transformers and the converter ignore it"


def with_tensors(change: Callable[[dict[str, Any]], None], **values: Any) -> Callable[[Path], Path]:
    """A tiny Llama whose tensors are changed, and then its `config.json`."""

    def make(folder: Path) -> Path:
        make_model("LlamaForCausalLM", folder)
        state = safetensors.torch.load_file(folder / "model.safetensors")
        change(state)
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        edit_json(folder / "config.json", **values)
        return folder

    return make


def tie_a_copy(state: dict[str, Any]) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()


def drop_head(state: dict[str, Any]) -> None:
    del state["lm_head.weight"]


def add_buffers(state: dict[str, Any]) -> None:
    for block in range(6):
        state[f"model.layers.{block}.self_attn.rotary_emb.inv_freq"] = state["model.norm.weight"][:8].clone()


def pack(state: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    state[name.replace("weight", "qweight")] = state.pop(name)[:8].int()


def stays_untied(folder: Path) -> None:
    """A cut keeps the head, says so, and is what transformers makes of it."""
    same_logits(folder)
    out = folder.parent / "cut"
    status, said = command("prune", folder, "--remove", "1", "--heal", "none", "--windows", 1,
                           "--window-length", 32, "-o", out)  # fmt: skip
    assert status == 0, said
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    same_logits(out)


@rows(
    Condition(
        "rope_scaling beside rope_parameters",
        edited(rope_scaling=LINEAR, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        "transformers 5 takes rope_scaling; written by older tools into newer files",
        same_logits,
    ),
    Condition(
        "rope_scaling without a base, rope_parameters with another",
        edited(rope_scaling=LINEAR, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "transformers 5 takes the class's base, not that of the object it leaves",
        same_logits,
    ),
    Condition(
        "rope_scaling and rope_theta of an older file",
        edited(rope_scaling=LINEAR, rope_theta=5e5, drop=("rope_parameters",)),
        TRANSFORMERS,
        same_logits,
    ),
    Condition(
        "an empty rope_scaling beside rope_parameters",
        edited(rope_scaling={}, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        "transformers takes rope_parameters",
        same_logits,
    ),
    Condition(
        "rope_scaling null",
        edited(rope_scaling=None, rope_theta=3e4, drop=("rope_parameters",)),
        "Llama 2's own config has it",
        same_logits,
    ),
    Condition(
        "both rope_type and type",
        edited(rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2.0}),
        "saved by transformers 4.43 and later; rope_type counts",
        same_logits,
    ),
    Condition(
        "Llama 3's scaling without its original context",
        edited(rope_scaling={k: v for k, v in LLAMA3_ROPE.items() if not k.startswith("original")}),
        "transformers takes max_position_embeddings",
        same_logits,
    ),
    Condition(
        "an original context beside YaRN's own",
        edited("Qwen2ForCausalLM", rope_scaling=YARN, original_max_position_embeddings=64),
        "transformers takes the one beside",
        same_logits,
    ),
    Condition(
        "YaRN as Qwen's model cards say to add it",
        edited("Qwen2ForCausalLM", rope_scaling={"type": "yarn", "factor": 4.0,
                                                 "original_max_position_embeddings": 128}),
        TRANSFORMERS,
        same_logits,
    ),
    Condition(
        "LongRoPE without an original context beside it",
        edited("Phi3ForCausalLM", drop=("original_max_position_embeddings",), rope_parameters=LONG_ROPE),
        "transformers takes the class's 4,096, whatever stands within",
        same_logits,
    ),
    Condition(
        "LongRoPE under its first name, su",
        edited("Phi3ForCausalLM", rope_parameters=LONG_ROPE | {"rope_type": "su"}),
        "transformers 4 renamed it, 5 does not know it; llama.cpp's converter takes it: we follow that",
        lambda folder: None if command("inspect", folder)[0] == 0 else refused("su")(folder),
    ),
    Condition(
        "a scaling of a kind that is unknown",
        edited(rope_scaling={"type": "ntk-by-hand", "factor": 2.0}),
        "transformers has no such kind",
        refused("config.json", "rope_type", "ntk-by-hand"),
    ),
    Condition(
        "a setting that a scaling does not have",
        edited(rope_scaling=LINEAR | {"alpha": 1000.0}),
        "transformers warns and ignores it",
        told("rope_scaling: alpha", "1000.0"),
    ),
    Condition(
        "a partial rotation in a family without one",
        edited(partial_rotary_factor=0.5),
        "transformers' class never reads it, nor does the converter",
        same_logits,
    ),
    Condition(
        "tied, with a head of its own",
        edited(tie_word_embeddings=True),
        "transformers 5 and llama.cpp use the head; transformers 4 dropped it",
        stays_untied,
    ),
    Condition(
        "tied, with a copy of the embedding as its head",
        with_tensors(tie_a_copy, tie_word_embeddings=True),
        "the same whether it is used or not",
        same_logits,
    ),
    Condition(
        "tied without saying so",
        with_tensors(drop_head, tie_word_embeddings=True),
        "the usual case",
        same_logits,
    ),
    Condition(
        "untied by config, and no head",
        with_tensors(drop_head, tie_word_embeddings=False),
        "transformers makes up a random head, with a warning",
        refused("missing: lm_head.weight"),
    ),
    Condition(
        "rotary buffers of an older checkpoint",
        with_tensors(add_buffers),
        "transformers and the converter drop inv_freq",
        same_logits,
    ),
    Condition(
        "LLaMAForCausalLM",
        edited(architectures=["LLaMAForCausalLM"]),
        "the converters' first spelling; llama.cpp's converter takes it",
        same_logits,
    ),
    Condition(
        "architectures null",
        edited(architectures=None),
        "transformers goes by model_type",
        same_logits,
    ),
    Condition(
        "no architectures",
        edited("Qwen3ForCausalLM", drop=("architectures",)),
        "transformers goes by model_type",
        same_logits,
    ),
    Condition(
        "architectures an empty list",
        edited("MistralForCausalLM", architectures=[], sliding_window=None),
        "transformers goes by model_type",
        same_logits,
    ),
    Condition(
        "two families at once",
        edited(model_type="mistral"),
        "transformers goes by model_type, the converter by architectures: they may differ",
        refused("config.json", "model_type", "mistral", "LlamaForCausalLM"),
    ),
    Condition(
        "a classifier",
        edited(architectures=["LlamaForSequenceClassification"]),
        "it has no next token",
        refused("architectures", "LlamaForSequenceClassification"),
    ),
    Condition("gradient_checkpointing", edited(gradient_checkpointing=True), IGNORED, same_logits),
    Condition(
        "training leftovers",
        edited(lora_alpha=16, neftune_alpha=5, deepspeed={"stage": 2}, max_seq_len=4096),
        IGNORED,
        told("lora_alpha", "16", "deepspeed"),
    ),
    Condition(
        "another family's setting",
        edited(residual_multiplier=0.5, sliding_window=16, layer_types=["sliding_attention"] * 6),
        IGNORED,
        told("residual_multiplier", "sliding_window", "layer_types"),
    ),
    Condition("keys that say nothing", edited(moe=None, tags=[], extra={}, mup=False), IGNORED, same_logits),
    Condition("swish", edited(hidden_act="swish"), "transformers' other name of silu", same_logits),
    Condition(
        "an activation that is not SwiGLU's",
        edited(hidden_act="gelu"),
        "transformers computes gelu, llama.cpp silu",
        refused("config.json", "hidden_act", "gelu"),
    ),
    Condition(
        "a leftover quantization_config",
        edited(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "the weights are plain, as merged adapters leave them; transformers wants bitsandbytes all the same",
        told("quantization_config", "bitsandbytes"),
    ),
    Condition(
        "weights that are quantised",
        with_tensors(pack, quantization_config={"quant_method": "gptq", "bits": 4}),
        "transformers needs a package for it, the converter refuses it",
        refused("config.json", "quantised by 'gptq'"),
    ),
    Condition("a base of whole numbers", edited(rope_theta=500000, drop=("rope_parameters",)), TRANSFORMERS,
              same_logits),
    Condition("a head dimension of null", edited(head_dim=None), TRANSFORMERS, same_logits),
    Condition(
        "windows of a kind that is unknown",
        edited("Qwen2ForCausalLM", layer_types=["chunked_attention"] * 6),
        "transformers computes it for other families",
        refused("layer_types", "chunked_attention"),
    ),
    Condition(
        "no key/value heads stated",
        lambda folder: edit_and_return(folder, num_key_value_heads=4),
        "Llama 1's config: as many as heads",
        same_logits,
    ),
    Condition(
        "Mistral's window left out",
        edited("MistralForCausalLM", drop=("sliding_window",)),
        "transformers assumes 4,096",
        same_logits,
    ),
    Condition(
        "Qwen2 with a window that is not used",
        edited("Qwen2ForCausalLM", sliding_window=8, use_sliding_window=False, drop=("layer_types",)),
        "every Qwen2.5 has it",
        same_logits,
    ),
    Condition(
        "Granite without its multipliers",
        edited("GraniteForCausalLM", drop=("attention_multiplier", "residual_multiplier")),
        "transformers assumes 1, not 1 / √head_dim",
        same_logits,
    ),
    Condition(
        "comments of a saving tool",
        edited(_name_or_path="/home/x/y", _attn_implementation="sdpa"),
        IGNORED,
        same_logits,
    ),
    Condition(
        "a context that is no whole number",
        edited(max_position_embeddings=512.0),
        "transformers refuses it",
        refused("max_position_embeddings", "512.0"),
    ),
    Condition(
        "a sampler's settings", edited(do_sample=True, temperature=0.7, top_p=0.9), IGNORED, same_logits
    ),
    Condition(
        "dtype in both spellings", edited(torch_dtype="float16", dtype="bfloat16"), IGNORED, same_logits
    ),
)  # fmt: skip
def test_configs(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path / "model")


def edit_and_return(folder: Path, **values: Any) -> Path:
    """A model whose config leaves out what it was made with."""
    make_model("LlamaForCausalLM", folder, **values)
    edit_json(folder / "config.json", tuple(values))
    return folder
