"""How fast models run: what the smaller work allows, and what llama.cpp makes of it on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
from tinysleb.search.cost import generation_costs
from tinysleb.search.gain import prompt_costs

PROMPT, GENERATED, ROUNDS = 512, 64, 5
"""Tokens of a prompt, tokens that are generated behind it, and how often each model is timed."""


@dataclass(frozen=True)
class Ideal:
    """How many times as fast as its original a model is if only the work counts: a prompt's goes with the
    weights that multiply in the blocks, and generation's with the bytes that are read for a token."""

    prompt: float
    generation: float


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of several runs, and the slowest and the fastest of them."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Speed:
    """What was measured in llama.cpp."""

    prompt: Rate
    generation: Rate


def ideal_speed(original: Weights, model: Weights, context: int) -> Ideal:
    """The speed-up that the smaller work allows, `context` tokens after the first."""
    works = [prompt_costs(each.config).total for each in (original, model)]
    costs = [generation_costs(each, context).total for each in (original, model)]
    return Ideal(works[0] / works[1], costs[0] / costs[1])


def measure_speeds(
    paths: Sequence[Path], threads: int, progress: Callable[[float], None] = lambda _done: None
) -> list[Speed]:
    """Time GGUFs in llama.cpp (the package cyllama), in turn: what else the machine does meets all of them.

    Raises TinyslebError if llama.cpp does not load one.
    """
    loaded = [_Loaded(path, threads) for path in paths]
    times: list[list[tuple[float, float]]] = [[] for _ in loaded]
    for done in range(ROUNDS):
        for number, model in enumerate(loaded):
            times[number].append(model.seconds())
            progress((done + (number + 1) / len(loaded)) / ROUNDS)
    return [_speed(each) for each in times]


def _speed(runs: Sequence[tuple[float, float]]) -> Speed:
    prompts, generations = zip(*runs, strict=True)
    return Speed(_rate(PROMPT, prompts), _rate(GENERATED, generations))


def _rate(tokens: int, seconds: Sequence[float]) -> Rate:
    rates = [tokens / each for each in seconds]
    return Rate(median(rates), min(rates), max(rates))


class _Loaded:
    """A model in llama.cpp, with room for a prompt and what is generated behind it."""

    def __init__(self, path: Path, threads: int) -> None:
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = PROMPT + GENERATED
        params.n_batch = params.n_ubatch = PROMPT
        params.n_threads = params.n_threads_batch = threads
        try:
            self.model = llama_cpp.LlamaModel(str(path), llama_cpp.LlamaModelParams())
            self.context: Any = llama_cpp.LlamaContext(self.model, params)
        except (ValueError, RuntimeError) as error:
            raise TinyslebError(f"llama.cpp does not load {path}: {error}") from error
        self.batch = llama_cpp.LlamaBatch(n_tokens=PROMPT, embd=0, n_seq_max=1)
        self.seconds()  # the first run reads the file

    def seconds(self) -> tuple[float, float]:
        """What a prompt takes, and what is generated. Which tokens they are does not matter."""
        self.context.kv_cache_clear()
        begin = time.perf_counter()
        self._decode([1] * PROMPT, 0)
        prompt = time.perf_counter()
        for place in range(PROMPT, PROMPT + GENERATED):
            self._decode([1], place)
        return prompt - begin, time.perf_counter() - prompt

    def _decode(self, tokens: list[int], place: int) -> None:
        self.batch.set_batch(tokens, place, False)
        self.context.decode(self.batch)
        self.context.synchronize()
