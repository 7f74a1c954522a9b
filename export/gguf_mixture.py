"""Which tensor of a GGUF is stored in which type: the mixtures of llama.cpp's quantiser.

Rules as in `llama_tensor_get_type_impl` and `tensor_type_fallback` of `src/llama-quant.cpp`.
"""

from __future__ import annotations

import re

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tinysleb.checkpoint.architectures import DECI
from tinysleb.checkpoint.config import ATTENTION, ModelConfig
from tinysleb.formats.tensor_types import FileType, tensor_type

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LARGE_MODEL_BLOCKS = 80


def mixed_type(
    name: str, shape: tuple[int, ...], file_type: FileType, config: ModelConfig, weighted: bool = False
) -> GGMLQuantizationType:
    """The type that a tensor of a model of shape `config` has in a file of a type.

    `name`: the tensor's in the GGUF. `weighted`: whether there is an importance matrix. Rows that do not
    divide into the type's blocks fall back; vectors, and norms with them, are float32.
    """
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    chosen = file_type.matrices.name
    if not file_type.matrices.is_float:
        if name == (EMBEDDING if config.tied else HEAD):
            chosen = _head_type(chosen, shape[-1])
        elif block := re.match(r"blk\.(\d+)\.(\w+)\.weight", name):
            chosen = _block_type(block[2], int(block[1]), file_type, config, weighted) or chosen
    return _fitting(chosen, shape[-1])


def _fitting(name: str, columns: int) -> GGMLQuantizationType:
    for each in (name, tensor_type(name).fallback):
        if each and columns % GGML_QUANT_SIZES[GGMLQuantizationType[each]][0] == 0:
            return GGMLQuantizationType[each]
    return GGMLQuantizationType.F16


def _head_type(matrices: str, columns: int) -> str:
    fits = columns % GGML_QUANT_SIZES[GGMLQuantizationType[matrices]][0] == 0
    return "Q6_K" if fits and matrices != "Q8_0" else "Q8_0"


def _block_type(part: str, index: int, file_type: FileType, config: ModelConfig, weighted: bool) -> str:
    """The type of a matrix of block `index`, if it is not that of most matrices; else ''."""
    option, count = file_type.option, config.blocks
    if part == "attn_v":
        index, count = _among_attentions(index, config)
    eighth = count // 8
    more_bits = index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2
    if part in ("attn_v", "attn_qkv"):
        chosen = _value_type(option, index, config, more_bits)
        large = _is_large(config) and (chosen or file_type.matrices.name) in ("Q3_K", "Q4_K")
        return "Q5_K" if large else chosen
    if part == "attn_output":
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(option, "")
    if part == "ffn_down":
        return _down_type(option, index, config, more_bits, weighted)
    return ""


def _among_attentions(index: int, config: ModelConfig) -> tuple[int, int]:
    """Which attention that of block `index` is, and of how many: llama.cpp counts those that are there."""
    there = [ATTENTION not in lacking for lacking in config.without] or [True] * config.blocks
    return sum(there[:index]), sum(there)


def _value_type(option: str, index: int, config: ModelConfig, more_bits: bool) -> str:
    shared = config.heads // config.kv_heads >= 4
    match option:
        case "q2_k":
            return "Q4_K" if shared else "Q3_K"
        case "q3_k_m":
            return "Q5_K" if index < 2 else "Q4_K"
        case "q3_k_l":
            return "Q5_K"
        case "q4_k_s" if index < 4:
            return "Q5_K"
        case "q4_k_m" | "q5_k_m" if more_bits:
            return "Q6_K"
        case "iq4_nl" if shared:
            return "Q5_K"
    return ""


def _down_type(option: str, index: int, config: ModelConfig, more_bits: bool, weighted: bool) -> str:
    first_eighth = index < config.blocks // 8
    match option:
        case "q2_k":
            return "Q3_K"
        case "q3_k_m":
            return "Q5_K" if index < config.blocks // 16 else "Q4_K"
        case "q3_k_l":
            return "Q5_K"
        case "q4_k_s" if first_eighth:
            return "Q5_K"
        case "q4_k_m" | "q5_k_m" if more_bits:
            return "Q6_K"
        case "iq4_nl" if first_eighth and not weighted:
            return "Q5_K"
        case "q4_0" | "q5_0" if first_eighth and weighted:
            return {"q4_0": "Q4_1", "q5_0": "Q5_1"}[option]
    return ""


def _is_large(config: ModelConfig) -> bool:
    """Whether llama.cpp takes this for a model of 70 billion parameters, by its number of blocks."""
    family = config.architecture.gguf in ("qwen2", DECI.gguf) or (
        config.architecture.gguf == "llama" and config.heads != config.kv_heads
    )
    return family and config.blocks == LARGE_MODEL_BLOCKS
