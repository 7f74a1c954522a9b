"""The metadata of a GGUF made from a checkpoint, as llama.cpp's `convert_hf_to_gguf.py` writes it.

The general part comes from the gguf package itself. Same keys, same order, same omissions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
from gguf.gguf_writer import GGUFValue, GGUFWriter

from tinysleb.checkpoint.architectures import GGUF_GRAPHS
from tinysleb.checkpoint.config import ModelConfig, parameter_count
from tinysleb.checkpoint.rotary import Rotary
from tinysleb.checkpoint.settings import SettingsReader
from tinysleb.export.deci import stated_sizes
from tinysleb.export.general_metadata import general_metadata
from tinysleb.export.gguf_limits import ignored_window
from tinysleb.export.gguf_vocab import add_vocabulary
from tinysleb.formats.files import read_json_object, valid_text
from tinysleb.formats.gguf_file import GgufValue
from tinysleb.formats.model_files import check_read_files


@dataclass(frozen=True)
class CheckpointMetadata:
    """The metadata, and notes about what the files say that a GGUF cannot have."""

    values: dict[str, GgufValue]
    notes: tuple[str, ...]


def checkpoint_metadata(
    config: ModelConfig, folder: Path, file_type: gguf.LlamaFileType, pre: str | None = None
) -> CheckpointMetadata:
    """All metadata for the checkpoint in `folder`: general, model, tokenizer.

    `config` gives the shape (it may be shorter than the folder's), `folder` the files around the weights.
    Raises TinyslebError if the tokenizer cannot be expressed.
    """
    check_read_files(folder)  # the gguf package opens them by name
    values = read_json_object(folder / "config.json")
    writer = GGUFWriter(None, config.architecture.gguf)
    writer.add_type(gguf.GGUFType.MODEL)
    general, notes = general_metadata(folder, values, parameter_count(config))
    general.set_gguf_meta_model(writer)
    _add_model(writer, config, values)
    writer.add_file_type(file_type)
    _add_family(writer, config, SettingsReader(values, str(folder / "config.json")))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    notes += add_vocabulary(writer, folder, config.vocab_size, pre)
    metadata = {key: _plain(value) for key, value in writer.kv_data[0].items()}
    if names := metadata.get("tokenizer.chat_templates"):  # the package has them in a set, in any order
        metadata["tokenizer.chat_templates"] = replace(names, value=sorted(names.value))
    return CheckpointMetadata(metadata, notes)


def _plain(item: GGUFValue) -> GgufValue:
    if isinstance(item.value, str):
        return GgufValue(valid_text(item.value), item.type)
    item_type = item.sub_type
    if item.type == gguf.GGUFValueType.ARRAY and item_type is None:
        item_type = gguf.GGUFValueType.get_type(item.value[0])
    return GgufValue(item.value, item.type, item_type)


def _add_model(writer: GGUFWriter, config: ModelConfig, values: Mapping[str, Any]) -> None:
    writer.add_block_count(config.blocks)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    sizes = stated_sizes(config)
    writer.add_feed_forward_length(sizes["feed_forward_length"])
    writer.add_head_count(sizes["attention.head_count"])
    writer.add_head_count_kv(sizes["attention.head_count_kv"])
    _add_rotary_scaling(writer, config.rotary, values)
    writer.add_rope_freq_base(config.rotary.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if values.get("head_dim") is not None and GGUF_GRAPHS[config.architecture.gguf].any_head_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _add_rotary_scaling(writer: GGUFWriter, rotary: Rotary, values: Mapping[str, Any]) -> None:
    if rotary.linear_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary.linear_factor)
    if rotary.yarn_factor:
        parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rotary.yarn_factor)
        writer.add_rope_scaling_orig_ctx_len(rotary.original_context)
        if (factor := parameters.get("attention_factor")) is not None:
            writer.add_rope_scaling_yarn_attn_factor(factor)
        if (fast := parameters.get("beta_fast")) is not None:
            writer.add_rope_scaling_yarn_beta_fast(fast)
        if (slow := parameters.get("beta_slow")) is not None:
            writer.add_rope_scaling_yarn_beta_slow(slow)


def _add_family(writer: GGUFWriter, config: ModelConfig, read: SettingsReader) -> None:
    """What only some architectures have a key for."""
    graph = GGUF_GRAPHS[config.architecture.gguf]
    if graph.states_vocab_size:
        writer.add_vocab_size(config.vocab_size)
    if graph.states_rope_dimensions:
        writer.add_rope_dimension_count(config.rotary.dimensions)
    if graph.states_original_context:
        original = read.integer("original_max_position_embeddings", default=config.context_length)
        writer.add_rope_scaling_orig_ctx_len(config.rotary.original_context or original)
        writer.add_sliding_window(read.integer("sliding_window", default=0, least=0))
        if config.rotary.long_factors:
            writer.add_rope_scaling_attn_factors(config.rotary.attention_factor)
    elif window := ignored_window(config):
        writer.add_sliding_window(window)  # llama.cpp does not apply it here, but the file should say so
    if graph.states_multipliers:
        writer.add_attention_scale(config.attention_scale)
        writer.add_embedding_scale(config.embedding_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(config.logit_divisor)
