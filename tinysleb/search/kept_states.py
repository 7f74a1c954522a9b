"""Hidden states kept from one round for the next, as far as memory allows.

Removing block b changes nothing below it. The next round's candidates below b are, up to b, what they were
in this round, and above b its base is this round's winner. A state kept before block p lets a stream enter
the next sweep at p.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

BASE = -1
"""The key of the stream that leaves nothing out; other keys are the block a stream leaves out."""
MOST_POSITIONS = 8
"""Further positions to enter at save little."""


class KeptStates:
    """States `[T, width]` by window, key and the block before which they were taken.

    `limit`: the bytes they may take, `held`: the bytes they take; what does not fit is not kept. `positions`:
    the blocks before which states are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.positions = limit, 0, frozenset[int]()
        self._states: dict[tuple[int, int, int], Tensor] = {}

    @property
    def room(self) -> int:
        """The bytes left for more states."""
        return self.limit - self.held

    def want(self, positions: Sequence[int], bytes_each: int) -> None:
        """Choose positions, the most valuable first; `bytes_each`: the most that one may take."""
        fitting = min(MOST_POSITIONS, self.room // bytes_each)
        self.positions = frozenset(positions[:fitting])

    def save(self, first_window: int, key: int, position: int, stream: Tensor) -> None:
        """Keep a copy of `stream` `[n, T, width]`, windows `first_window` and following."""
        for window, state in enumerate(stream, first_window):
            if (window, key, position) not in self._states and self.room >= state.nbytes:
                self.held += state.nbytes
                self._states[window, key, position] = state.clone()

    def highest(self, windows: range, key: int, limit: int) -> int | None:
        """The highest position up to `limit` at which the stream `key` is known for all `windows`."""
        known = [
            position
            for position in {p for window, k, p in self._states if k == key and window == windows[0]}
            if position <= limit and all((window, key, position) in self._states for window in windows)
        ]
        return max(known, default=None)

    def stream(self, windows: range, key: int, position: int) -> Tensor:
        """The states of a stream at a position that `highest` named, `[n, T, width]`."""
        return torch.stack([self._states[window, key, position] for window in windows])

    def remove(self, block: int) -> None:
        """Drop what is no longer true once `block` is left out for good."""
        still: dict[tuple[int, int, int], Tensor] = {}
        for (window, key, position), state in self._states.items():
            if key == block:
                still[window, BASE, position] = state
            elif key < block and position <= block:
                still[window, key, position] = state
            else:
                self.held -= state.nbytes
        self._states = still


def spread(candidates: Collection[int]) -> list[int]:
    """Positions to keep states at when nothing is known yet: evenly over the candidates."""
    ordered = sorted(candidates)
    step = max(1, len(ordered) // MOST_POSITIONS)
    return ordered[step - 1 :: step][::-1]
