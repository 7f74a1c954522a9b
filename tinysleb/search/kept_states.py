"""Hidden states kept from one round for the next, as far as memory allows.

A cut changes nothing below it. The next round's candidates below the cut are, up to it, what they were in
this round, and above it the next base is this round's winner. A state kept before a sublayer lets a stream
enter the next sweep there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinysleb.sublayers import Cut

BASE: Cut = ()
"""The key of the stream that leaves nothing out: a stream's key is the cut that it makes."""
MOST_POSITIONS = 8
"""Further positions to enter at save little."""


class KeptStates:
    """States `[T, width]` by window, key and the sublayer before which they were taken.

    `limit`: the bytes they may take, `held`: the bytes they take; what does not fit is not kept. `positions`:
    the sublayers before which states are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.positions = limit, 0, frozenset[int]()
        self._states: dict[tuple[int, Cut, int], Tensor] = {}

    @property
    def room(self) -> int:
        """The bytes left for more states."""
        return self.limit - self.held

    def want(self, positions: Sequence[int], bytes_each: int) -> None:
        """Choose positions, the most valuable first; `bytes_each`: the most that one may take."""
        fitting = min(MOST_POSITIONS, self.room // bytes_each)
        self.positions = frozenset(positions[:fitting])

    def save(self, first_window: int, key: Cut, position: int, stream: Tensor) -> None:
        """Keep a copy of `stream` `[n, T, width]`, windows `first_window` and following."""
        for window, state in enumerate(stream, first_window):
            if (window, key, position) not in self._states and self.room >= state.nbytes:
                self.held += state.nbytes
                self._states[window, key, position] = state.clone()

    def highest(self, windows: range, key: Cut, limit: int) -> int | None:
        """The highest position up to `limit` at which the stream `key` is known for all `windows`."""
        known = [
            position
            for position in {p for window, k, p in self._states if k == key and window == windows[0]}
            if position <= limit and all((window, key, position) in self._states for window in windows)
        ]
        return max(known, default=None)

    def stream(self, windows: range, key: Cut, position: int) -> Tensor:
        """The states of a stream at a position that `highest` named, `[n, T, width]`."""
        return torch.stack([self._states[window, key, position] for window in windows])

    def remove(self, cut: Cut) -> None:
        """Drop what is no longer true once `cut` is made for good."""
        still: dict[tuple[int, Cut, int], Tensor] = {}
        for (window, key, position), state in self._states.items():
            if key == cut:
                still[window, BASE, position] = state
            elif position <= cut[0]:
                still[window, key, position] = state
            else:
                self.held -= state.nbytes
        self._states = still


def spread(positions: Sequence[int]) -> list[int]:
    """Some of `positions`, ascending, to keep states at when nothing is known yet: evenly over all."""
    step = max(1, len(positions) // MOST_POSITIONS)
    return list(positions[step - 1 :: step][::-1])
