"""The maths of a Llama-family model, as pure functions on tensors.

One forward pass is `embed`, then `block_forward` for each block, then `token_losses` (or `logits`).
A block's weights are a dict from the checkpoint's own names within the block to tensors. Hidden states
(the residual stream) are float32; the weights' dtype is the dtype of the matrix products; norms, softmax
and losses are float32. Leaving a block out is not calling it: nothing here knows about pruning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.config import ModelConfig, block_prefix, block_shapes
from tinysleb.memory import TOKEN_CHUNK, VOCABULARY_CHUNK
from tinysleb.weights import Weights


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of the rotation angles, float32 `[T, head_dim]`, halves repeated."""

    cos: Tensor
    sin: Tensor


def rotary_table(config: ModelConfig, length: int, device: torch.device | None = None) -> RotaryTable:
    """The rotation of positions 0 … length-1 (see `config.Rotary`)."""
    rotary = config.rotary
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / rotary.theta**exponents
    if rotary.frequency_factors:
        frequencies = frequencies / torch.tensor(rotary.frequency_factors)
    positions = torch.arange(length, dtype=torch.float32) / rotary.linear_factor
    angles = torch.outer(positions, frequencies).repeat(1, 2).to(device)
    return RotaryTable(angles.cos(), angles.sin())


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 (arXiv 1910.07467)."""
    return F.rms_norm(hidden, weight.shape, weight, eps)


def rotate(heads: Tensor, table: RotaryTable) -> Tensor:
    """Turn `[…, T, head_dim]` by position; the halves of the last dimension rotate together."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * table.cos + turned * table.sin


def linear(hidden: Tensor, block: Mapping[str, Tensor], name: str) -> Tensor:
    """`block[name]` applied to `[…, in]`; bias added if the block has one. Result in the weight's dtype."""
    return F.linear(hidden, block[name + ".weight"], block.get(name + ".bias"))


def attention(hidden: Tensor, block: Mapping[str, Tensor], config: ModelConfig, table: RotaryTable) -> Tensor:
    """Causal grouped-query attention (arXiv 2305.13245): `[B, T, width]` → the same."""
    batch, length, _ = hidden.shape

    def heads(name: str, count: int) -> Tensor:
        return linear(hidden, block, name).view(batch, length, count, config.head_dim).transpose(1, 2)

    queries = rotate(heads("self_attn.q_proj", config.heads), table).to(hidden.dtype)
    keys = rotate(heads("self_attn.k_proj", config.kv_heads), table).to(hidden.dtype)
    values = heads("self_attn.v_proj", config.kv_heads)
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    return linear(mixed.transpose(1, 2).reshape(batch, length, -1), block, "self_attn.o_proj")


def feed_forward(hidden: Tensor, block: Mapping[str, Tensor]) -> Tensor:
    """SwiGLU (arXiv 2002.05202): down(silu(gate) * up)."""
    gate = F.silu(linear(hidden, block, "mlp.gate_proj"), inplace=True)
    return linear(gate.mul_(linear(hidden, block, "mlp.up_proj")), block, "mlp.down_proj")


def block_forward(
    hidden: Tensor, block: Mapping[str, Tensor], config: ModelConfig, table: RotaryTable
) -> Tensor:
    """One transformer block: `[B, T, width]` float32 → the same, as a new tensor."""
    dtype = block["self_attn.q_proj.weight"].dtype
    normed = rms_norm(hidden, block["input_layernorm.weight"], config.norm_eps).to(dtype)
    hidden = hidden + attention(normed, block, config, table)
    normed = rms_norm(hidden, block["post_attention_layernorm.weight"], config.norm_eps).to(dtype)
    return hidden.add_(feed_forward(normed, block))


def load_block(weights: Weights, index: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The weights of one block, matrices in `dtype`, norms in float32."""
    block: dict[str, Tensor] = {}
    for name in block_shapes(weights.config):
        kind = torch.float32 if name.endswith("norm.weight") else dtype
        block[name] = weights.tensor(block_prefix(index) + name).to(device, kind)
    return block


def embed(weights: Weights, tokens: Tensor) -> Tensor:
    """Embedding rows of `tokens` `[n, T]` as float32 `[n, T, width]`, read in chunks of the vocabulary."""
    name = "model.embed_tokens.weight"
    hidden = torch.empty(*tokens.shape, weights.config.width, device=tokens.device)
    for start, stop in chunks(weights.config.vocab_size, VOCABULARY_CHUNK):
        inside = (tokens >= start) & (tokens < stop)
        if inside.any():
            rows = weights.tensor(name, start, stop).to(tokens.device, torch.float32)
            hidden[inside] = rows[tokens[inside] - start]
    return hidden


def head_name(config: ModelConfig) -> str:
    """The tensor that maps hidden states to logits."""
    return "model.embed_tokens.weight" if config.tied else "lm_head.weight"


def final_norm(weights: Weights, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm before the head, in float32, given in `dtype`."""
    weight = weights.tensor("model.norm.weight").to(hidden.device, torch.float32)
    return rms_norm(hidden, weight, weights.config.norm_eps).to(dtype)


def logits(weights: Weights, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """All logits, float32 `[…, vocabulary]`, of hidden states after the last block."""
    head = weights.tensor(head_name(weights.config)).to(hidden.device, dtype)
    return F.linear(final_norm(weights, hidden, dtype), head).float()


def token_losses(weights: Weights, states: Sequence[Tensor], targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Negative log-likelihood of `targets` `[m]` under each of `states`, float32 `[len(states), m]`.

    `states`: what `final_norm` gave, each `[m, width]`. The head is read once, in chunks of the
    vocabulary; the log-sum-exp is carried from chunk to chunk, so all logits are never held.
    """
    shape = (len(states), len(targets))
    log_sum = torch.full(shape, -torch.inf, device=targets.device)
    target_logit = torch.zeros(shape, device=targets.device)
    for start, stop in chunks(weights.config.vocab_size, VOCABULARY_CHUNK):
        rows = weights.tensor(head_name(weights.config), start, stop).to(targets.device, dtype)
        for index, normed in enumerate(states):
            for first, last in chunks(len(targets), TOKEN_CHUNK):
                chunk = F.linear(normed[first:last], rows).float()
                part = slice(first, last)
                _gather_targets(target_logit[index, part], chunk, targets[part] - start)
                log_sum[index, part] = torch.logaddexp(log_sum[index, part], _log_sum_exp_(chunk))
    return log_sum - target_logit


def forward(weights: Weights, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits `[n, T, vocabulary]` of a whole forward pass, one block in memory at a time."""
    with torch.inference_mode():
        hidden = embed(weights, tokens)
        table = rotary_table(weights.config, tokens.shape[1], tokens.device)
        for index in range(weights.config.blocks):
            block = load_block(weights, index, dtype, tokens.device)
            hidden = block_forward(hidden, block, weights.config, table)
        return logits(weights, hidden, dtype)


def _gather_targets(target_logit: Tensor, chunk: Tensor, targets: Tensor) -> None:
    """Write the logits of those targets that lie inside this chunk of the vocabulary."""
    inside = ((targets >= 0) & (targets < chunk.shape[1])).nonzero().flatten()
    target_logit[inside] = chunk[inside, targets[inside]]


def _log_sum_exp_(chunk: Tensor) -> Tensor:
    """`logsumexp` over the last dimension that overwrites its argument instead of copying it."""
    largest = chunk.amax(dim=-1, keepdim=True)
    return chunk.sub_(largest).exp_().sum(dim=-1).log_().add_(largest.squeeze(-1))


def chunks(total: int, size: int) -> Iterable[tuple[int, int]]:
    """Bounds of consecutive ranges of at most `size` that cover 0 … total-1."""
    return ((start, min(start + size, total)) for start in range(0, total, size))
