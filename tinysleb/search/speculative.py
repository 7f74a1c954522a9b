"""Speculative decoding, as llama.cpp does it: what a draft brings, by its cost and how often it is right.

In a round, the draft proposes `length` tokens, one after the other. The original checks them in one pass,
keeps those up to the first that it would not have chosen, and adds its own (arXiv 2211.17192). llama.cpp's
draft then reads what was checked, too (`common_speculative_process`), which costs as much as one token more.

Costs are relative to a token that the original generates alone. With c that of a token of the draft, and v
that of checking, a round of k tokens costs k c + v (1 + c). Where generation waits for memory, v is 1: all
weights are read once. It is not where a machine computes slowly: v = max(1, (k + 1) / r), if the original
reads a prompt r times as fast as it generates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LONGEST = 16
"""Tokens that are drafted at a time, at most, unless something else is asked for."""
MOST_DRAFTED = 512
"""What may be asked for; longer drafts are not looked at."""
WORTHWHILE = 1.05
"""How many times as fast as alone the original must be with a draft, for that to pay: less is not felt, and a
draft takes memory."""
GENEROUS = 0.8
"""An acceptance that a shortened model hardly reaches."""


@dataclass(frozen=True)
class Drafting:
    """Drafting `length` tokens at a time: how many tokens come out of a round, and what that costs."""

    length: int
    tokens: float
    cost: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the original alone."""
        return self.tokens / self.cost


@dataclass(frozen=True)
class Draft:
    """A model that drafts: its `acceptance`, the rate of tokens that the original would have written, too;
    its cost; and how many tokens a round gives, for the lengths 1, 2, …

    `prompt_ratio`: how many times as fast the original reads a prompt as it generates; infinite where it
    waits for memory.
    """

    acceptance: float
    cost: float
    tokens: Sequence[float]
    prompt_ratio: float = math.inf

    @property
    def draftings(self) -> list[Drafting]:
        """What drafting at each length brings."""
        return [
            Drafting(
                length, tokens, length * self.cost + _checking(length, self.prompt_ratio) * (1 + self.cost)
            )
            for length, tokens in enumerate(self.tokens, 1)
        ]

    @property
    def best(self) -> Drafting:
        """The fastest; of equals, the shortest."""
        return max(self.draftings, key=lambda drafting: (drafting.speedup, -drafting.length))

    @property
    def pays(self) -> bool:
        """Whether it is worth to draft."""
        return self.best.speedup >= WORTHWHILE

    @property
    def most_cost(self) -> float:
        """What a token may cost at this acceptance, so that a length pays; 0 or less if not even nothing."""
        return most_cost(self.tokens, self.prompt_ratio, WORTHWHILE)

    @property
    def least_prompt_ratio(self) -> float:
        """How many times as fast as it generates the original must read a prompt, so that a length is no
        slower than the original alone; infinite if none will."""
        left = {
            each.length: (each.tokens - each.length * self.cost) / (1 + self.cost) for each in self.draftings
        }
        return min((max(1.0, (k + 1) / v) for k, v in left.items() if v > 1), default=math.inf)

    def with_misses(self, left: float) -> Draft:
        """The same where only this part of the misses is `left`: rounds give more tokens, by as much as they
        would if each token were accepted independently."""
        acceptance = 1 - left * (1 - self.acceptance)
        before, after = (independent_tokens(each, len(self.tokens)) for each in (self.acceptance, acceptance))
        tokens = [
            min(found * more / less, length + 1)
            for length, (found, less, more) in enumerate(zip(self.tokens, before, after, strict=True), 1)
        ]
        return Draft(acceptance, self.cost, tokens, self.prompt_ratio)


def independent_tokens(acceptance: float, longest: int = LONGEST) -> list[float]:
    """Tokens a round for each length 1 … `longest`, if every token is accepted with the same probability,
    whatever came before: 1 + a + … + aᵏ (equation 1 of arXiv 2211.17192)."""
    return [sum(acceptance**power for power in range(length + 1)) for length in range(1, longest + 1)]


def replayed_tokens(texts: Sequence[Sequence[bool]], longest: int = LONGEST) -> list[float]:
    """Tokens a round for each length 1 … `longest`, when the texts are generated again: of each token that
    the original wrote, whether the draft would have written it, too, behind what the original wrote before.

    That is all that rounds depend on. Hits come in runs, which `independent_tokens` does not know.
    """
    runs = [_runs(text) for text in texts]
    total = sum(map(len, texts))
    return [total / sum(_rounds(each, length) for each in runs) for length in range(1, longest + 1)]


def _runs(text: Sequence[bool]) -> list[int]:
    """How many hits follow from each token on."""
    runs: list[int] = []
    for hit in reversed(text):
        runs.append(runs[-1] + 1 if hit and runs else int(hit))
    return runs[::-1]


def _rounds(runs: Sequence[int], length: int) -> int:
    """How many rounds a text takes."""
    position = rounds = 0
    while position < len(runs):
        position += min(runs[position], length) + 1
        rounds += 1
    return rounds


def most_cost(tokens: Sequence[float], prompt_ratio: float = math.inf, speedup: float = 1) -> float:
    """What a draft's token may cost, so that at some length the original is so many times as fast with it; 0
    or less if it may cost nothing. `tokens` a round are those of the lengths 1, 2, …"""
    checking = [_checking(length, prompt_ratio) for length in range(1, len(tokens) + 1)]
    costs = (
        (found / speedup - v) / (length + v)
        for length, (found, v) in enumerate(zip(tokens, checking, strict=True), 1)
    )
    return max(costs)


def least_acceptance(cost: float, longest: int = LONGEST, prompt_ratio: float = math.inf) -> float:
    """The acceptance, of each token alike, above which a draft of this cost pays; infinite if none will."""
    if most_cost(independent_tokens(1, longest), prompt_ratio) <= cost:
        return math.inf
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        pays = most_cost(independent_tokens(middle, longest), prompt_ratio) > cost
        low, high = (low, middle) if pays else (middle, high)
    return high


def least_bytes(limit: float, rest: float, draft_rest: float, share: float) -> float:
    """How many bytes an original must read for a token, so that a draft of it costs no more than `limit`;
    infinite if no size will do.

    `rest`, of the original, and `draft_rest`, of the draft: what is read besides blocks, which stays as it
    is; `share`: what the draft's blocks take of the original's, which may grow.
    """
    if limit <= share:
        return math.inf
    return rest + max(0.0, (draft_rest - limit * rest) / (limit - share))


def best_count(most: int, value: Callable[[int], float], tries: int) -> int:
    """The number among 1 … `most` with the largest `value`, which is slow to find: `tries` that are evenly
    spread are looked at, then those next to the best of them."""
    known: dict[int, float] = {}

    def best_of(counts: Sequence[int]) -> int:
        known.update({count: value(count) for count in counts if count not in known})
        return max(known, key=lambda count: (known[count], -count))

    step = max(1, most // tries)
    best = best_of(range(most, 0, -step))
    return best_of(range(max(1, best - step + 1), min(most, best + step - 1) + 1))


def _checking(length: int, prompt_ratio: float) -> float:
    """What checking so many tokens costs the original."""
    return max(1.0, (length + 1) / prompt_ratio)
