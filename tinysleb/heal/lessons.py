"""The windows that a student learns from: of the given text, and of what the original writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.compute.compute import Compute
from tinysleb.heal.text import HealingText, least_bytes, self_windows, text_sources

MOST_GIVEN = 1 << 22
"""Tokens of given text that are held, in 32 MiB; of a longer one, a sample."""
GIVEN = 4
"""One window in so many is of the given text: what the original writes serves other text better, and
given text is learned quickly."""


class Lessons:
    """Windows `[n, T]` by their number, without end, the same whatever the number asked for at a time.

    Given text comes in an order drawn anew for every pass over it; what the original writes is always new.
    `given` and `sampled`: whether there is text of that kind.
    """

    def __init__(
        self,
        weights: Checkpoint,
        text: HealingText,
        compute: Compute,
        say: Callable[[str], None],
        *,
        given: bool,
        sampled: bool,
    ) -> None:
        self.weights, self.compute, self.sampled = weights, compute, sampled
        self.say = say
        self.text = replace(text, seed=text.seed + 1)  # the closed form has seen what that seed gives
        self.given: Tensor | None = None
        if given:
            sources = text_sources(weights, replace(text, tokens=MOST_GIVEN, sampled=0))
            self.given = torch.cat([source.fit for source in sources])

    @property
    def bytes_to_write(self) -> int:
        """What it takes to let the original write, at least."""
        return least_bytes(self.weights, self.text, self.compute.dtype.itemsize) if self.sampled else 0

    def windows(self, start: int, count: int) -> Tensor:
        """`count` windows after the first `start`."""
        numbers = range(start, start + count)
        if self.given is None:
            return self._written(start, count)
        if not self.sampled:
            return torch.stack([self._given(self.given, number) for number in numbers])
        earlier = start - -(-start // GIVEN)
        written = iter(self._written(earlier, count))
        return torch.stack(
            [self._given(self.given, n // GIVEN) if n % GIVEN == 0 else next(written) for n in numbers]
        )

    def _given(self, windows: Tensor, number: int) -> Tensor:
        turn, place = divmod(number, len(windows))
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.text.seed + turn))
        return windows[order[place]]

    def _written(self, start: int, count: int) -> Tensor:
        """Windows that the original writes; it is only in memory meanwhile."""
        compute = self.compute.between_stages()
        found: list[Tensor] = []
        portions = self_windows(self.weights, self.text, compute, self.say, portion=count, start=start)
        while sum(map(len, found)) < count:
            found.append(next(portions))
        portions.close()
        return torch.cat(found)[:count]
