"""What a model is, from its headers alone, and the least a search needs: values for `tinysleb inspect`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tinysleb.checkpoint.config import ATTENTION, block_parameter_count, parameter_count
from tinysleb.checkpoint.rotary import Rotary
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import least_bytes, rounded_up
from tinysleb.search.cuts import DEFAULT_KIND, candidates, removable
from tinysleb.search.estimate import first_round_passes


def describe(weights: Checkpoint, window_length: int, compute: Compute) -> dict[str, Any]:
    """Family, shape, sizes, tokenizer, and what a search would need on `compute`.

    `prune_memory_bytes`: about the least memory, in bytes, that a search keeps to, all blocks but the first
    and the last being candidates. `prune_block_passes`: how often a window goes through a block in the first
    round of an exact search.
    """
    config = weights.config
    blocks, rotary = config.blocks, config.rotary
    types: Counter[str] = Counter()
    for info in weights.tensors.values():
        types[info.type] += info.nbytes
    cuts = candidates(range(2 * blocks), removable(blocks, 1, 1), DEFAULT_KIND)
    length = min(window_length, config.context_length)
    least = least_bytes(config, len(cuts), length, compute.dtype.itemsize, compute.memory.resident)
    return {
        "path": str(weights.path),
        "architecture": config.architecture.huggingface,
        "blocks": blocks,
        "width": config.width,
        "intermediate": config.intermediate,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "context_length": config.context_length,
        "rope_theta": rotary.theta,
        "rope_scaling": _rope_scaling(rotary),
        "attention_windows": sorted(set(config.attention_windows)),
        "blocks_without_rotary": [i for i, still in enumerate(config.unrotated) if still],
        "blocks_without_attention": [i for i, halves in enumerate(config.without) if ATTENTION in halves],
        "tied_embeddings": config.tied,
        "parameters": parameter_count(config),
        "block_parameters": block_parameter_count(config),
        "bytes": sum(types.values()),
        "bytes_by_type": dict(types.most_common()),
        "tokenizer": weights.tokenizer_files().kind,
        "prune_memory_bytes": rounded_up(least),
        "prune_block_passes": first_round_passes(blocks, cuts),
    }


def _rope_scaling(rotary: Rotary) -> str:
    if rotary.long_factors:
        return f"longrope beyond {rotary.original_context}"
    if rotary.yarn_factor:
        return f"yarn {rotary.yarn_factor:g}"
    if rotary.linear_factor != 1:
        return f"linear {rotary.linear_factor:g}"
    return f"up to {max(rotary.frequency_factors):g}" if rotary.frequency_factors else "none"
