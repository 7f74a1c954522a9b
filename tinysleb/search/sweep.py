"""One sweep: all variants of a model scored in one walk up the stack, each block loaded once.

Everything below what a candidate leaves out is shared: a candidate branches off the base stream before its
cut, and goes on above it, so n candidates cost about n²/2 block passes instead of n². A stream whose state is
kept from the round before enters where that state was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import block_parameter_count
from tinysleb.checkpoint.weights import Weights
from tinysleb.model.blocks import Block, read_blocks
from tinysleb.model.forward import advance_half, embed
from tinysleb.model.head import final_norm, token_losses
from tinysleb.model.positions import block_positions
from tinysleb.search.kept_states import BASE, KeptStates
from tinysleb.search.original import Original
from tinysleb.sublayers import Cut


@dataclass(frozen=True)
class Route:
    """Where each stream of a sweep begins.

    `entries`: the streams whose state is kept, with the sublayer before which they enter. `branching`: the
    candidates that branch off the base stream. `base`: the sublayers that the base stream goes through, from
    its entry to where the last candidate branches off, or to the top; None if it is not needed.
    """

    entries: Mapping[Cut, int]
    branching: frozenset[Cut]
    base: range | None

    def passes(self, stack: Sequence[int]) -> list[int]:
        """How many streams go through each sublayer of `stack`."""
        begins = [entry for key, entry in self.entries.items() if key != BASE]
        begins += [cut[-1] + 1 for cut in self.branching]
        base = self.base or range(0)
        return [(sublayer in base) + sum(begin <= sublayer for begin in begins) for sublayer in stack]


def plan_route(
    stack: Sequence[int], candidates: Collection[Cut], with_base: bool, windows: range, states: KeptStates
) -> Route:
    """The shortest way to the top for all streams, given the states that are kept."""
    top = stack[-1]
    highest = {cut: states.highest(windows, cut, top) for cut in candidates}
    branching = frozenset(cut for cut, entry in highest.items() if entry is None)
    entries = {cut: entry for cut, entry in highest.items() if entry is not None}
    if not with_base and not branching:
        return Route(entries, branching, None)
    begin = states.highest(windows, BASE, min((cut[0] for cut in branching), default=top))
    if begin is not None:
        entries[BASE] = begin
    end = top + 1 if with_base else max(cut[0] for cut in branching)
    return Route(entries, branching, range(begin or 0, end))


@torch.inference_mode()
def sweep(
    weights: Weights,
    stack: Sequence[int],
    candidates: Collection[Cut],
    tokens: Tensor,
    dtype: torch.dtype,
    *,
    with_base: bool = True,
    ahead: bool = True,
    states: KeptStates | None = None,
    kept_blocks: dict[int, Block] | None = None,
    original: Original | None = None,
    first_window: int = 0,
    progress: Callable[[float], None] = lambda _done: None,
) -> dict[Cut, Tensor]:
    """Token losses of the model made of the sublayers `stack`, and of that model less each candidate.

    `stack`: sublayers of `weights`, ascending; `candidates`: cuts of it, each of neighbours; `tokens`:
    `[n, T]` on the device to compute on, the first of them window `first_window` to the `states` kept between
    sweeps. `ahead`: read the next block meanwhile. `kept_blocks`: blocks kept between sweeps; what is read is
    added. `progress` is called with the fraction done, 0 to 1.
    Returns for `BASE` (if asked for) and each candidate the negative log-likelihoods of tokens 1 … T-1,
    float32 `[n, T-1]`; with `original`, which has all windows, divergences from it in
    their place.
    """
    config = weights.config
    states = states or KeptStates(0)
    windows = range(first_window, first_window + len(tokens))
    route = plan_route(stack, candidates, with_base, windows, states)
    passes = dict(zip(stack, route.passes(stack), strict=True))
    head = 2 * config.vocab_size * config.width / block_parameter_count(config)
    work, done = sum(passes.values()) + head * (len(candidates) + with_base), 0
    wanted = sorted({sublayer // 2 for sublayer, count in passes.items() if count})
    blocks = read_blocks(weights, wanted, dtype, tokens.device, ahead, kept_blocks)
    positions = block_positions(config, tokens.shape[1], tokens.device)
    streams = _Streams(route, weights, tokens, windows, states, len(candidates) + with_base)
    for index, sublayers in groupby(stack, key=lambda sublayer: sublayer // 2):
        block = next(blocks) if index in wanted else {}
        for sublayer in sublayers:
            for stream in streams.before(sublayer):
                advance_half(stream, block, config, positions[index], sublayer)
            done += passes[sublayer]
        del block  # before the next one is awaited, and the one after it is being read
        progress(done / work)
    losses = _losses(weights, streams.finished(with_base), tokens, dtype, original, windows)
    return dict(zip([*streams.order, BASE], losses, strict=False))


class _Streams:
    """The hidden states of all variants: the base's `[n, T, width]`, and one tensor for all candidates.

    `hidden`: `[variants, n, T, width]`, filled from the front as candidates arrive: first those on their way,
    `moving` of them, which lie together; behind them those that wait until their cut is passed. `order`:
    which they are.
    """

    def __init__(
        self, route: Route, weights: Weights, tokens: Tensor, windows: range, states: KeptStates, count: int
    ) -> None:
        self.route, self.weights, self.tokens = route, weights, tokens
        self.windows, self.states = windows, states
        self.order: list[Cut] = []
        self.moving = 0
        self.base: Tensor | None = None
        self.hidden = torch.empty(count, *tokens.shape, weights.config.width, device=tokens.device)

    def before(self, sublayer: int) -> list[Tensor]:
        """All that happens before a sublayer. Returns what then goes through it, each `[m, T, width]`."""
        while self.moving < len(self.order) and self.order[self.moving][-1] < sublayer:
            self.moving += 1
        self._enter(sublayer)
        self._save(sublayer)
        going = [self.hidden[: self.moving].flatten(0, 1)] if self.moving else []
        if self.base is not None:
            for cut in sorted(cut for cut in self.route.branching if cut[0] == sublayer):
                self._insert(len(self.order), cut, self.base)
            if self.route.base and sublayer in self.route.base:
                going.append(self.base)
            else:
                self.base = None
        return going

    def finished(self, with_base: bool) -> Tensor:
        """All variants `[variants, n, T, width]` at the top, the base last if `with_base`."""
        if with_base and self.base is not None:
            self.hidden[-1] = self.base
        self.base = None
        return self.hidden

    def _enter(self, sublayer: int) -> None:
        for key, entry in self.route.entries.items():
            if key != BASE and key not in self.order and entry <= sublayer:
                self._insert(self.moving, key, self.states.stream(self.windows, key, entry))
                self.moving += 1
        base = self.route.base
        if base is not None and self.base is None and base.start <= sublayer <= base.stop:
            if BASE in self.route.entries:
                self.base = self.states.stream(self.windows, BASE, base.start)
            else:
                self.base = embed(self.weights, self.tokens)

    def _save(self, sublayer: int) -> None:
        if sublayer in self.states.positions:
            for slot, key in enumerate(self.order[: self.moving]):
                self.states.save(self.windows[0], key, sublayer, self.hidden[slot])
            if self.base is not None:
                self.states.save(self.windows[0], BASE, sublayer, self.base)

    def _insert(self, slot: int, key: Cut, stream: Tensor) -> None:
        for behind in range(len(self.order), slot, -1):
            self.hidden[behind] = self.hidden[behind - 1]
        self.hidden[slot] = stream
        self.order.insert(slot, key)


def _losses(
    weights: Weights,
    hidden: Tensor,
    tokens: Tensor,
    dtype: torch.dtype,
    original: Original | None,
    windows: range,
) -> Tensor:
    """Token losses `[variants, n, T-1]` on the CPU, of states `[variants, n, T, width]`, overwritten; with
    the `original`, divergences from it."""
    for stream in hidden:
        stream.copy_(final_norm(weights, stream, torch.float32))
    targets = F.pad(tokens[:, 1:], (0, 1)).flatten()  # the last token's loss is computed, and left out below
    if original is None:
        losses = token_losses(weights, hidden.flatten(1, 2), targets, dtype)
    else:
        losses = original.divergences(weights, hidden.flatten(1, 2), windows, dtype)
    return losses.view(hidden.shape[:3])[..., :-1].cpu()
