"""What drafts are judged by: texts that the original writes itself, as it does where they will be used."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import sampling_bytes
from tinysleb.errors import TinyslebError
from tinysleb.heal.prompts import chat_questions, text_ends
from tinysleb.search.acceptance import Judge, read, written
from tinysleb.text.long_text import Unfinished
from tinysleb.text.tokenizer import open_tokenizer

TEXTS = 64
"""Texts that are written: half of them answers, if the model chats, the others go on with given text."""
LENGTH, BEGUN = 128, 32
"""Tokens of a text, and those of them that are given."""


def draft_judge(
    weights: Checkpoint,
    windows: Tensor,
    has_tokenizer: bool,
    seed: int,
    compute: Compute,
    say: Callable[[str], None],
    progress: Callable[[float], None],
) -> Judge:
    """Texts that a model writes behind questions, and behind the beginnings of stretches of `windows`
    `[n, T]`; where it does not fit into memory, what it says of these windows themselves.

    Raises TinyslebError if the model ends all texts at once.
    """
    length = min(LENGTH, weights.config.context_length)
    need = compute.memory.resident + sampling_bytes(weights.config, TEXTS, length, compute.dtype.itemsize)
    if need > compute.memory.total:
        say("drafts are judged by the given text: the model does not fit into memory, to write some itself")
        return read(weights, windows, compute)
    prompts: list[list[int]] = []
    ends: frozenset[int] = frozenset()
    if has_tokenizer:
        prompts = list(islice(chat_questions(weights, seed, say), TEXTS // 2))
        ends = text_ends(weights, Unfinished(open_tokenizer(weights)))
    prompts += _beginnings(windows, length)[: TEXTS - len(prompts)]
    judge = written(weights, prompts, length, ends, compute, progress)
    if not judge.count:
        raise TinyslebError(
            f"{weights.path} writes nothing behind {len(prompts)} texts, so that no draft can be judged",
            "give other text",
        )
    return judge


def _beginnings(windows: Tensor, length: int) -> list[list[int]]:
    """The first tokens of each stretch of `length` tokens of the windows, or of each window."""
    tokens = windows.shape[1]
    stretch = min(length, tokens)
    stretches = windows[:, : tokens // stretch * stretch].reshape(-1, stretch)
    begun: list[list[int]] = stretches[:, : min(BEGUN, max(1, stretch // 2))].tolist()
    return begun
