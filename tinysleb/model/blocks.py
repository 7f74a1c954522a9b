"""Blocks of a model in the order they are wanted, each read while the one before computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig, block_prefix, shapes_of_block
from tinysleb.checkpoint.weights import Weights

Block = dict[str, Tensor]
"""A block's weights by the checkpoint's own names within the block."""


def load_block(weights: Weights, index: int, dtype: torch.dtype, device: torch.device) -> Block:
    """The weights of one block, matrices in `dtype`, norms in float32; fused matrices come apart."""
    block: Block = {}
    for name in shapes_of_block(weights.config, index):
        kind = torch.float32 if name.endswith("norm.weight") else dtype
        block[name] = _upload(weights.tensor(block_prefix(index) + name).to(kind), device)
    return _unfused(block, weights.config) if weights.config.architecture.fused else block


def read_blocks(
    weights: Weights,
    indices: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    ahead: bool,
    kept: dict[int, Block] | None,
) -> Iterator[Block]:
    """`load_blocks`, but for those that are in `kept`, if there is that; the others are added to it."""
    if kept is None:
        yield from load_blocks(weights, indices, dtype, device, ahead)
        return
    missing = [index for index in indices if index not in kept]
    coming = load_blocks(weights, missing, dtype, device, ahead)
    for index in indices:
        if index not in kept:
            kept[index] = next(coming)
        yield kept[index]


def load_blocks(
    weights: Weights, indices: Sequence[int], dtype: torch.dtype, device: torch.device, ahead: bool
) -> Iterator[Block]:
    """`load_block` for each of `indices`. With `ahead`, one thread reads, dequantises and uploads the next
    block while the caller computes, so two are in memory; without, one."""
    if not ahead or len(indices) < 2:
        yield from (load_block(weights, index, dtype, device) for index in indices)
        return
    upload = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def load(index: int) -> tuple[Block, torch.cuda.Event | None]:
        if upload is None:
            return load_block(weights, index, dtype, device), None
        with torch.cuda.stream(upload):
            return load_block(weights, index, dtype, device), upload.record_event()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load") as thread:
        coming = thread.submit(load, indices[0])
        for following in (*indices[1:], None):
            block, uploaded = coming.result()
            if following is not None:
                coming = thread.submit(load, following)
            if uploaded is not None:
                _hand_over(block, uploaded)
            yield block
            del block  # or three would be in memory while the next is awaited


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device; pinned memory lets a GPU copy while it computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _hand_over(block: Block, uploaded: torch.cuda.Event) -> None:
    """Make the computing stream wait for the upload, and keep the memory until it has used it."""
    computing = torch.cuda.current_stream()
    computing.wait_event(uploaded)
    for tensor in block.values():
        tensor.record_stream(computing)


def _unfused(block: Block, config: ModelConfig) -> Block:
    keys = config.kv_heads * config.head_dim
    parts: Block = {}
    if (fused := block.pop("self_attn.qkv_proj.weight", None)) is not None:
        rows = torch.split(fused, [fused.shape[0] - 2 * keys, keys, keys])
        parts |= {f"self_attn.{name}_proj.weight": part for name, part in zip("qkv", rows, strict=True)}
    if (fused := block.pop("mlp.gate_up_proj.weight", None)) is not None:
        parts["mlp.gate_proj.weight"], parts["mlp.up_proj.weight"] = fused.chunk(2)
    return block | parts
