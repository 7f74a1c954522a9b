"""The maths of a Llama-family model, as pure functions on tensors.

One forward pass is `embed`, then `block_forward` for each block, each at its `Position` in the stack, then
what `head.py` makes of the states.
A block's weights are a dict from the checkpoint's own names within the block to tensors. Hidden states
(the residual stream) are float32; the weights' dtype is the dtype of the matrix products; norms, softmax
and losses are float32. Leaving a block out is not calling it: nothing here knows about pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import DOWN, OUT, ModelConfig
from tinysleb.checkpoint.weights import Weights
from tinysleb.model.blocks import Block, load_block
from tinysleb.model.chunks import QUERY_CHUNK, VOCABULARY_CHUNK, chunks, windows_in_call
from tinysleb.model.head import logits
from tinysleb.model.norms import rms_norm
from tinysleb.model.positions import Position, block_positions, rotate
from tinysleb.model.streams import FileStream, Stream

NORM_AFTER = {OUT: "post_attention_layernorm", DOWN: "post_feedforward_layernorm"}
"""The norm that follows a half's last product, where norms come after it."""


@dataclass
class KeyValueCache:
    """One block's keys `[B, kv_heads, head_dim, T]` and values `[B, kv_heads, T, head_dim]` of the tokens so
    far, with room for T. Keys lie as their product with queries reads them fastest."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of one new token, each `[B, kv_heads, 1, head_dim]`; returns all so far."""
        end = self.length + 1
        self.keys[..., self.length] = keys[:, :, 0]
        self.values[:, :, self.length] = values[:, :, 0]
        self.length = end
        return self.keys[..., :end], self.values[:, :, :end]


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> KeyValueCache:
    """Room for keys and values of `shape` `[B, kv_heads, T, head_dim]`."""
    keys, values = torch.empty(2, *shape, dtype=dtype, device=device)
    return KeyValueCache(keys.view(*shape[:2], shape[3], shape[2]), values)


def linear(hidden: Tensor, block: Mapping[str, Tensor], name: str) -> Tensor:
    """`block[name]` applied to `[…, in]`; bias added if the block has one. Result in the weight's dtype."""
    return F.linear(hidden, block[name + ".weight"], block.get(name + ".bias"))


def attention(
    hidden: Tensor,
    block: Mapping[str, Tensor],
    config: ModelConfig,
    position: Position,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """Causal grouped-query attention (arXiv 2305.13245): `[B, T, width]` → the same.

    With a `cache`, `hidden` is of one new token (T = 1), which sees all that the cache holds.
    """
    return linear(mixed_values(hidden, block, config, position, cache), block, OUT)


def mixed_values(
    hidden: Tensor,
    block: Mapping[str, Tensor],
    config: ModelConfig,
    position: Position,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """What attention sends through `self_attn.o_proj`: `[B, T, width]` → `[B, T, heads · head_dim]`."""
    batch, length, _ = hidden.shape

    def heads(name: str, count: int) -> Tensor:
        projected = linear(hidden, block, f"self_attn.{name}_proj")
        norm = block.get(f"self_attn.{name}_norm.weight")
        if norm is not None and config.architecture.qk_norm == "all":
            projected = rms_norm(projected.float(), norm, config.norm_eps)
        split = projected.view(batch, length, count, config.head_dim)
        if norm is not None and config.architecture.qk_norm == "head":
            split = rms_norm(split.float(), norm, config.norm_eps)
        return split.transpose(1, 2)

    queries, keys = heads("q", config.heads), heads("k", config.kv_heads)
    if position.table is not None:
        queries, keys = rotate(queries, position.table), rotate(keys, position.table)
    queries, keys, values = queries.to(hidden.dtype), keys.to(hidden.dtype), heads("v", config.kv_heads)
    mask, scale = position.mask, config.attention_scale or config.head_dim**-0.5
    if cache is not None:
        return mixed_for_token(queries, *cache.append(keys, values), mask, scale).flatten(1, 2)[:, None]
    if hidden.device.type == "cpu" and hidden.dtype != torch.float32:
        mixed = mixed_in_chunks(queries, keys, values, mask, scale)
    else:
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    return mixed.transpose(1, 2).reshape(batch, length, -1)


def mixed_for_token(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """What one token sees: `[B, heads, head_dim]`.

    `queries`: `[B, heads, 1, head_dim]`; `keys` and `values` as in `KeyValueCache`; `mask` `[1, T]`. The
    heads of a group are rows of one product, so that no key is copied for each: on a CPU, several times as
    fast as `scaled_dot_product_attention`, which copies.
    """
    batch, heads, _, head_dim = queries.shape
    scores = (queries * scale).view(batch, keys.shape[1], -1, head_dim) @ keys
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return (scores.softmax(-1) @ values).reshape(batch, heads, head_dim)


def mixed_in_chunks(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """`scaled_dot_product_attention`, some queries at a time: in bfloat16 on a CPU it takes two thirds of the
    time, and is as near to float32.

    `queries`: `[B, heads, T, head_dim]`; `keys` and `values`: `[B, kv_heads, T, head_dim]`; `mask` as in
    `Position`. Returns the shape of `queries`.
    """
    batch, heads, length, head_dim = queries.shape
    groups = batch * keys.shape[1]
    queries = (queries * scale).reshape(groups, -1, length, head_dim)
    keys, values = keys.reshape(groups, length, head_dim).mT, values.reshape(groups, length, head_dim)
    mixed = torch.empty_like(queries)
    for start, stop in chunks(length, QUERY_CHUNK):
        chunk = queries[:, :, start:stop].flatten(1, 2)
        scores = (chunk @ keys[:, :, :stop]).view(groups, -1, stop - start, stop)
        if mask is None:
            future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=queries.device).triu(1)
            scores[..., start:].masked_fill_(future, -torch.inf)
        else:
            scores.masked_fill_(~mask[start:stop, :stop], -torch.inf)
        weighted = scores.softmax(-1).flatten(1, 2) @ values[:, :stop]
        mixed[:, :, start:stop] = weighted.view(groups, -1, stop - start, head_dim)
    return mixed.view(batch, heads, length, head_dim)


def gated(hidden: Tensor, block: Mapping[str, Tensor]) -> Tensor:
    """The inputs of `mlp.down_proj` in SwiGLU (arXiv 2002.05202): silu(gate) * up, `[…, intermediate]`."""
    gate = F.silu(linear(hidden, block, "mlp.gate_proj"), inplace=True)
    return gate.mul_(linear(hidden, block, "mlp.up_proj"))


def half_inputs(
    hidden: Tensor, block: Mapping[str, Tensor], config: ModelConfig, last: str, norm: str
) -> Tensor:
    """What a half of a block, whose last product is `last`, is applied to, in the dtype of the products: the
    states `[…, width]`, normed where `norm` comes before that half."""
    dtype = block[f"{last}.weight"].dtype
    if config.architecture.post_norm:
        return hidden.to(dtype)
    return rms_norm(hidden.float(), block[f"{norm}.weight"], config.norm_eps).to(dtype)


def half_added(outputs: Tensor, block: Mapping[str, Tensor], config: ModelConfig, norm: str) -> Tensor:
    """What a half of a block adds to the states, given what its last matrix computes, `[…, width]`: normed
    where `norm` comes after that half."""
    if config.architecture.post_norm:
        return rms_norm(outputs.float(), block[f"{norm}.weight"], config.norm_eps)
    return outputs if config.residual_scale == 1 else outputs * config.residual_scale


def out_inputs(
    hidden: Tensor,
    block: Mapping[str, Tensor],
    config: ModelConfig,
    position: Position,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """The inputs `[B, T, heads · head_dim]` of a block's `self_attn.o_proj`."""
    normed = half_inputs(hidden, block, config, OUT, "input_layernorm")
    return mixed_values(normed, block, config, position, cache)


def down_inputs(hidden: Tensor, block: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
    """The inputs `[B, T, intermediate]` of its `mlp.down_proj`, from the states after its attention."""
    return gated(half_inputs(hidden, block, config, DOWN, "post_attention_layernorm"), block)


def product(inputs: Tensor, block: Mapping[str, Tensor], name: str, config: ModelConfig) -> Tensor:
    """What `self_attn.o_proj` or `mlp.down_proj` adds to the states."""
    return half_added(linear(inputs, block, name), block, config, NORM_AFTER[name])


def attend(
    hidden: Tensor,
    block: Mapping[str, Tensor],
    config: ModelConfig,
    position: Position,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """The attention of a block and what it adds to: `[B, T, width]` float32 → the same, as a new tensor."""
    return hidden + product(out_inputs(hidden, block, config, position, cache), block, OUT, config)


def feed_forward(hidden: Tensor, block: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
    """The same of its feed-forward."""
    return hidden + product(down_inputs(hidden, block, config), block, DOWN, config)


def block_forward(
    hidden: Tensor,
    block: Mapping[str, Tensor],
    config: ModelConfig,
    position: Position,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """One transformer block, or the half of it that is there: `[B, T, width]` float32 → the same, as a new
    tensor; `cache` as there."""
    if f"{OUT}.weight" in block:
        hidden = attend(hidden, block, config, position, cache)
    return feed_forward(hidden, block, config) if f"{DOWN}.weight" in block else hidden


def advance(streams: Stream, block: Block, config: ModelConfig, position: Position) -> None:
    """Send streams `[m, T, width]` through a block, in place, a few windows of them at a time."""
    for first, last in chunks(len(streams), windows_in_call(streams.shape[1])):
        streams[first:last] = block_forward(streams[first:last], block, config, position)


def advance_half(
    streams: Stream, block: Block, config: ModelConfig, position: Position, sublayer: int
) -> None:
    """The same through that half of a block which `sublayer` is: its attention if even."""
    for first, last in chunks(len(streams), windows_in_call(streams.shape[1])):
        if sublayer % 2:
            streams[first:last] = feed_forward(streams[first:last], block, config)
        else:
            streams[first:last] = attend(streams[first:last], block, config, position)


def embed(weights: Weights, tokens: Tensor) -> Tensor:
    """Embedding rows of `tokens` `[n, T]` as float32 `[n, T, width]`, read in chunks of the vocabulary."""
    name = "model.embed_tokens.weight"
    hidden = torch.empty(*tokens.shape, weights.config.width, device=tokens.device)
    for start, stop in chunks(weights.config.vocab_size, VOCABULARY_CHUNK):
        inside = (tokens >= start) & (tokens < stop)
        if inside.any():
            rows = weights.tensor(name, start, stop).to(tokens.device, torch.float32)
            hidden[inside] = rows[tokens[inside] - start]
    return hidden.mul_(weights.config.embedding_scale)


def embed_stream(weights: Weights, tokens: Tensor, file: Path | None) -> Stream:
    """`embed`, in memory or, a few windows at a time, in a file."""
    if file is None:
        return embed(weights, tokens)
    states = FileStream(file, (*tokens.shape, weights.config.width), tokens.device)
    for first, last in chunks(len(tokens), windows_in_call(tokens.shape[1])):
        states[first:last] = embed(weights, tokens[first:last])
    return states


def forward(weights: Weights, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits `[n, T, vocabulary]` of a whole forward pass, one block in memory at a time."""
    with torch.inference_mode():
        hidden = embed(weights, tokens)
        for index, position in enumerate(block_positions(weights.config, tokens.shape[1], tokens.device)):
            block = load_block(weights, index, dtype, tokens.device)
            hidden = block_forward(hidden, block, weights.config, position)
        return logits(weights, hidden, dtype)
