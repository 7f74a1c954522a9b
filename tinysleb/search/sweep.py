"""One sweep: all variants of a model scored in one walk up the stack, each block loaded once.

Everything below the block that a candidate leaves out is shared: a candidate branches off the base
stream at its block, so n candidates cost about n²/2 block passes instead of n². A stream whose state is
kept from the round before enters where that state was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import block_parameter_count
from tinysleb.checkpoint.weights import Weights
from tinysleb.model.blocks import load_blocks
from tinysleb.model.forward import advance, block_positions, embed, final_norm, token_losses
from tinysleb.search.kept_states import BASE, KeptStates


@dataclass(frozen=True)
class Route:
    """Where each stream of a sweep begins.

    `entries`: the streams whose state is kept, with the block before which they enter. `branching`: the
    candidates that branch off the base stream. `base`: the blocks that the base stream goes through, from
    its entry to where the last candidate branches off, or to the top; None if it is not needed.
    """

    entries: Mapping[int, int]
    branching: frozenset[int]
    base: range | None

    def passes(self, kept: Sequence[int]) -> list[int]:
        """How many streams go through each block of `kept`."""
        begins = [entry for key, entry in self.entries.items() if key != BASE]
        begins += [candidate + 1 for candidate in self.branching]
        base = self.base or range(0)
        return [(index in base) + sum(begin <= index for begin in begins) for index in kept]


def plan_route(
    kept: Sequence[int], candidates: Collection[int], with_base: bool, windows: range, states: KeptStates
) -> Route:
    """The shortest way to the top for all streams, given the states that are kept."""
    top = kept[-1]
    highest = {key: states.highest(windows, key, top) for key in candidates}
    branching = frozenset(key for key, entry in highest.items() if entry is None)
    entries = {key: entry for key, entry in highest.items() if entry is not None}
    if not with_base and not branching:
        return Route(entries, branching, None)
    begin = states.highest(windows, BASE, min(branching, default=top))
    if begin is not None:
        entries[BASE] = begin
    return Route(entries, branching, range(begin or 0, top + 1 if with_base else max(branching)))


@torch.inference_mode()
def sweep(
    weights: Weights,
    kept: Sequence[int],
    candidates: Collection[int],
    tokens: Tensor,
    dtype: torch.dtype,
    *,
    with_base: bool = True,
    ahead: bool = True,
    states: KeptStates | None = None,
    first_window: int = 0,
    progress: Callable[[float], None] = lambda _done: None,
) -> dict[int, Tensor]:
    """Token losses of the model made of the blocks `kept`, and of that model less each candidate.

    `kept`: block indices of `weights`, ascending; `candidates`: some of them; `tokens`: `[n, T]` on the
    device to compute on, the first of them window `first_window` to the `states` kept between sweeps.
    `ahead`: read the next block meanwhile. `progress` is called with the fraction done, 0 to 1. Returns for
    `BASE` (if asked for) and each candidate the negative log-likelihoods of tokens 1 … T-1, float32
    `[n, T-1]`.
    """
    config = weights.config
    states = states or KeptStates(0)
    windows = range(first_window, first_window + len(tokens))
    route = plan_route(kept, candidates, with_base, windows, states)
    passes = route.passes(kept)
    head = config.vocab_size * config.width / block_parameter_count(config)
    work, done = sum(passes) + head * (len(candidates) + with_base), 0
    blocks = load_blocks(
        weights, [i for i, count in zip(kept, passes, strict=True) if count], dtype, tokens.device, ahead
    )
    positions = block_positions(config, tokens.shape[1], tokens.device)
    streams = _Streams(route, weights, tokens, windows, states, len(candidates) + with_base)
    for index, count in zip(kept, passes, strict=True):
        moving = streams.before(index)
        if count:
            block = next(blocks)
            for stream in moving:
                advance(stream, block, config, positions[index])
            del block  # before the next one is awaited, and the one after it is being read
        done += count
        progress(done / work)
    losses = _losses(weights, streams.finished(with_base), tokens, dtype)
    return dict(zip([*streams.order, BASE], losses, strict=False))


class _Streams:
    """The hidden states of all variants: the base's `[n, T, width]`, and one tensor for all candidates.

    `hidden`: `[variants, n, T, width]`, filled from the front as candidates arrive, so that those under way
    lie together; `order`: which they are.
    """

    def __init__(
        self, route: Route, weights: Weights, tokens: Tensor, windows: range, states: KeptStates, count: int
    ) -> None:
        self.route, self.weights, self.tokens = route, weights, tokens
        self.windows, self.states = windows, states
        self.order: list[int] = []
        self.base: Tensor | None = None
        self.hidden = torch.empty(count, *tokens.shape, weights.config.width, device=tokens.device)

    def before(self, index: int) -> list[Tensor]:
        """All that happens before block `index`. Returns what then goes through it, each `[m, T, width]`."""
        self._enter(index)
        self._save(index)
        moving = [self.hidden[: len(self.order)].flatten(0, 1)] if self.order else []
        if self.base is not None:
            if index in self.route.branching:
                self._append(index, self.base)
            if self.route.base and index in self.route.base:
                moving.append(self.base)
            else:
                self.base = None
        return moving

    def finished(self, with_base: bool) -> Tensor:
        """All variants `[variants, n, T, width]` at the top, the base last if `with_base`."""
        if with_base and self.base is not None:
            self.hidden[-1] = self.base
        self.base = None
        return self.hidden

    def _enter(self, index: int) -> None:
        for key, entry in self.route.entries.items():
            if key != BASE and key not in self.order and entry <= index:
                self._append(key, self.states.stream(self.windows, key, entry))
        base = self.route.base
        if base is not None and self.base is None and base.start <= index <= base.stop:
            if BASE in self.route.entries:
                self.base = self.states.stream(self.windows, BASE, base.start)
            else:
                self.base = embed(self.weights, self.tokens)

    def _save(self, index: int) -> None:
        if index in self.states.positions:
            for slot, key in enumerate(self.order):
                self.states.save(self.windows[0], key, index, self.hidden[slot])
            if self.base is not None:
                self.states.save(self.windows[0], BASE, index, self.base)

    def _append(self, key: int, stream: Tensor) -> None:
        self.hidden[len(self.order)] = stream
        self.order.append(key)


def _losses(weights: Weights, hidden: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Token losses `[variants, n, T-1]` on the CPU, of states `[variants, n, T, width]`, overwritten."""
    for stream in hidden:
        stream.copy_(final_norm(weights, stream, torch.float32))
    targets = F.pad(tokens[:, 1:], (0, 1)).flatten()  # the last token's loss is computed, and left out below
    losses = token_losses(weights, hidden.flatten(1, 2), targets, dtype)
    return losses.view(hidden.shape[:3])[..., :-1].cpu()
