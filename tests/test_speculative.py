"""What drafting is expected to bring: formulas against simulated rounds, thresholds against trying."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from tinysleb.search.speculative import (
    Draft,
    best_count,
    independent_tokens,
    least_acceptance,
    least_bytes,
    most_cost,
    replayed_tokens,
)


def generated(text: Sequence[bool], length: int) -> tuple[int, int]:
    """Tokens and rounds of a text, generated as llama.cpp does, token by token."""
    tokens = rounds = 0
    while tokens < len(text):
        rounds += 1
        for _ in range(length):
            hit = tokens < len(text) and text[tokens]
            tokens += 1  # the draft's where it is accepted, else the original's in its place
            if not hit:
                break
        else:
            tokens += 1
    return len(text), rounds


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 0.95])
def test_tokens_a_round_are_those_of_simulated_rounds(acceptance: float) -> None:
    """The formula for independent tokens, and the replay, against 40,000 tokens generated one by one."""
    generator = random.Random(1)
    text = [generator.random() < acceptance for _ in range(40_000)]
    formula, replay = independent_tokens(acceptance, 16), replayed_tokens([text], 16)
    for length in (1, 2, 5, 16):
        tokens, rounds = generated(text, length)
        assert replay[length - 1] == pytest.approx(tokens / rounds)
        assert formula[length - 1] == pytest.approx(tokens / rounds, rel=0.02)


def test_texts_are_replayed_one_by_one() -> None:
    """Of eight hits in a row, two rounds of three and one of what is left; then each miss takes a round."""
    text = [True] * 8 + [False] * 2
    assert generated(text, 3) == (10, 4)
    assert replayed_tokens([text], 3)[2] == 10 / 4
    assert replayed_tokens([text[:9], text[5:]], 3)[2] == 14 / (3 + 2)


def test_a_speed_up_by_hand() -> None:
    """Three drafted tokens of half the cost each, checked in one pass, which the draft reads as well: a round
    takes 3 · 0.5 + 1 + 0.5 = 3 tokens' time, and gives 1 + 0.8 + 0.64 + 0.512 = 2.952 tokens."""
    draft = Draft(0.8, 0.5, independent_tokens(0.8, 3))
    assert draft.draftings[2].cost == pytest.approx(3)
    assert draft.draftings[2].speedup == pytest.approx(0.984)
    slow = Draft(0.8, 0.5, independent_tokens(0.8, 3), prompt_ratio=2)
    assert slow.draftings[2].cost == pytest.approx(3 * 0.5 + 2 * 1.5), "four tokens take the time of two"
    assert slow.draftings[0].cost == pytest.approx(0.5 + 1.5), "two take no longer than one"


CASES = [(acceptance, ratio) for acceptance in (0.4, 0.7, 0.9) for ratio in (math.inf, 5.0, 1.5)]


def speedup(acceptance: float, cost: float, length: int, ratio: float) -> float:
    """Written out anew."""
    tokens = (1 - acceptance ** (length + 1)) / (1 - acceptance)
    checking = max(1, (length + 1) / ratio)
    return tokens / (length * cost + checking + checking * cost)


@pytest.mark.parametrize(("acceptance", "ratio"), CASES)
def test_the_best_length_is_that_of_trying_all(acceptance: float, ratio: float) -> None:
    for cost in (0.05, 0.2, 0.5, 1.0):
        best = Draft(acceptance, cost, independent_tokens(acceptance, 16), ratio).best
        tried = {length: speedup(acceptance, cost, length, ratio) for length in range(1, 17)}
        assert best.speedup == pytest.approx(max(tried.values()))
        assert tried[best.length] == pytest.approx(best.speedup)


@pytest.mark.parametrize(("acceptance", "ratio"), CASES)
def test_a_draft_pays_up_to_the_cost_that_is_named(acceptance: float, ratio: float) -> None:
    for wanted in (1, 1.05, 1.3):
        limit = most_cost(independent_tokens(acceptance, 16), ratio, wanted)
        for cost in (0.0, limit - 1e-3, limit + 1e-3, 1.0):
            if cost >= 0:
                best = max(speedup(acceptance, cost, length, ratio) for length in range(1, 17))
                assert (best > wanted) == (cost < limit)


@pytest.mark.parametrize("cost", [0.05, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("ratio", [math.inf, 5.0])
def test_a_draft_pays_from_the_acceptance_that_is_named(cost: float, ratio: float) -> None:
    def pays(acceptance: float) -> bool:
        return max(speedup(acceptance, cost, length, ratio) for length in range(1, 17)) > 1

    least = least_acceptance(cost, 16, ratio)
    if math.isinf(least):
        assert not pays(1 - 1e-9)
    else:
        assert not pays(least - 1e-3)
        assert pays(min(least + 1e-3, 1 - 1e-9))


@pytest.mark.parametrize("cost", [0.05, 0.2, 0.35])
def test_a_draft_pays_from_the_prompt_ratio_that_is_named(cost: float) -> None:
    tokens = independent_tokens(0.8, 16)
    least = Draft(0.8, cost, tokens).least_prompt_ratio
    assert Draft(0.8, cost, tokens, least * 1.01).best.speedup > 1
    assert Draft(0.8, cost, tokens, least * 0.99).best.speedup < 1
    assert Draft(0.8, 0.9, tokens).least_prompt_ratio == math.inf


def test_a_size_that_makes_cuts_pay_by_hand() -> None:
    """A head of 30 bytes, and blocks of 70, half of which stay: a draft costs (30 + 35) / 100. It is to cost
    0.6: (30 + b / 2) / (30 + b) = 0.6, with blocks of b = 120 bytes."""
    assert least_bytes(0.6, rest=30, draft_rest=30, share=0.5) == pytest.approx(150)
    assert least_bytes(0.5, rest=30, draft_rest=30, share=0.5) == math.inf
    assert least_bytes(0.6, rest=30, draft_rest=10, share=0.5) == 30, "it does at any size"


HILLS: list[Callable[[int], float]] = [
    lambda count: -abs(count - 1),
    lambda count: -abs(count - 17),
    lambda count: -((count - 9.4) ** 2),
    float,
]


@pytest.mark.parametrize("value", HILLS)
@pytest.mark.parametrize("most", [1, 2, 7, 8, 16, 28, 78])
def test_the_best_count_is_found_without_trying_all(value: Callable[[int], float], most: int) -> None:
    asked: list[int] = []

    def slow(count: int) -> float:
        asked.append(count)
        return value(count)

    assert best_count(most, slow, 8) == max(range(1, most + 1), key=value)
    assert len(asked) == len(set(asked)) <= 8 + 2 * (most // 8 + 1)
    assert set(asked) <= set(range(1, most + 1))


def test_fewer_misses_are_never_worse() -> None:
    text = ([True] * 12 + [False] * 4) * 50
    draft = Draft(0.75, 0.3, replayed_tokens([text]))
    hoped = draft.with_misses(0.5)
    assert hoped.acceptance == 0.875
    assert draft.with_misses(1) == draft
    even = Draft(0.75, 0.3, independent_tokens(0.75)).with_misses(0.4)
    assert even.tokens == pytest.approx(independent_tokens(0.9))
    assert all(one <= other for one, other in zip(draft.tokens, hoped.tokens, strict=True))
    assert hoped.best.speedup > draft.best.speedup
