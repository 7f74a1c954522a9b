"""Whether a model still writes: its greedy answers to a few prompts, beside those of its original.

Measures of text that is given hide collapse: a model that finds most tokens of a text may yet repeat one
sentence for ever, once it has to go on from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint, Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import sampling_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.heal.prompts import text_ends
from tinysleb.measure.language import language_of
from tinysleb.measure.prompts import PROMPTS, Prompt, encode_prompts
from tinysleb.model.sampling import Resident, load_resident, sample
from tinysleb.text.long_text import Unfinished
from tinysleb.text.tokenizer import open_tokenizer

WRITTEN = 128
"""Tokens of an answer, at most."""
DRAWS = 3
"""Answers that are drawn to each question: of 60, the error of what is measured of them is a tenth of what
small models without a fifth of their blocks stray."""
TURN_ENDS = "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"
"""Of what is said in a chat, besides the model's own EOS token."""
GRAM = 4
"""Tokens in a row that a text repeats or not."""


@dataclass(frozen=True)
class Questions:
    """What is asked, as text and as tokens, the tokens that end an answer, and what decodes it."""

    prompts: Sequence[Prompt]
    tokens: Sequence[Sequence[int]]
    ends: frozenset[int]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Answer:
    """What a model wrote, as tokens and as text, and whether it came to an end by itself."""

    tokens: Sequence[int]
    text: str
    ended: bool


@dataclass(frozen=True)
class Writing:
    """How a model writes. `agreement`: after how many tokens it departs from the original's answer, on
    average; `repeated`: the share of four tokens in a row that were there before; `ended`: of answers that
    end by themselves, in `WRITTEN` tokens; `language`: of those that are in the language asked for.
    `reverse_kld`: by how many nats a token its drawn answers stray from the original, with the error."""

    agreement: float
    repeated: float
    ended: float
    language: float
    reverse_kld: float = 0.0
    reverse_kld_error: float = 0.0


def questions(weights: Checkpoint, prompts: Sequence[Prompt] = PROMPTS) -> Questions:
    """The prompts for a model and those with its vocabulary.

    Raises TinyslebError if there is no tokenizer, its chat template cannot be used, or gives tokens that the
    model has no row for.
    """
    tokenizer = open_tokenizer(weights)
    unfinished = Unfinished(tokenizer)
    tokens = encode_prompts(weights, unfinished, prompts)
    if not all(tokens):
        raise TinyslebError("the tokenizer makes no tokens of a question")
    if (largest := max(map(max, tokens))) >= weights.config.vocab_size:
        raise TinyslebError(
            f"the chat template uses token {largest}, and the vocabulary has {weights.config.vocab_size} rows"
        )
    return Questions(prompts, tokens, text_ends(weights, unfinished, TURN_ENDS), tokenizer.decode)


def model_to_write(weights: Weights, asked: Questions, compute: Compute) -> Resident:
    """The model in memory, with room for all answers to all questions at once.

    Raises TinyslebError if there is none.
    """
    length = max(map(len, asked.tokens)) + WRITTEN
    needed = sampling_bytes(weights.config, DRAWS * len(asked.tokens), length, compute.dtype.itemsize)
    if (wanted := compute.memory.resident + needed) > compute.memory.total:
        raise TinyslebError(
            f"the model does not fit into {format_bytes(compute.memory.total)} of memory to write",
            f"--memory {format_bytes(wanted)} would do",
        )
    return load_resident(weights, compute.dtype, compute.device)


def answer(
    model: Resident,
    asked: Questions,
    progress: Callable[[float], None] = lambda _done: None,
    temperature: float = 0,
) -> list[Answer]:
    """What a model writes, by default the most probable token each time; all answers at once."""
    length = max(map(len, asked.tokens)) + WRITTEN
    rows = sample(model, asked.tokens, length, seed=0, temperature=temperature, progress=progress)
    return read_answers(asked, asked.tokens, rows, WRITTEN)


def read_answers(asked: Questions, prompts: Sequence[Sequence[int]], rows: Tensor, most: int) -> list[Answer]:
    """What is written behind prompts in tokens `[n, T]`, a row each; at most so many tokens."""
    answers = []
    for row, prompt in zip(rows.tolist(), prompts, strict=True):
        written = row[len(prompt) : len(prompt) + most]
        kept = list(takewhile(lambda token: token not in asked.ends, written))
        text = asked.decode([*prompt, *kept]).removeprefix(asked.decode(prompt))
        answers.append(Answer(kept, text, len(kept) < len(written)))
    return answers


def judge(asked: Questions, answers: Sequence[Answer], originals: Sequence[Answer]) -> Writing:
    """How answers are, beside those of the original."""
    wanted = [prompt.language for prompt in asked.prompts]
    right = [
        language_of(each.text) == language
        for each, language in zip(answers, wanted, strict=True)
        if language is not None
    ]
    return Writing(
        agreement=_mean([agreement(one, two) for one, two in zip(answers, originals, strict=True)]),
        repeated=_mean([repeated(each.tokens) for each in answers]),
        ended=_mean([each.ended for each in answers]),
        language=_mean(right),
    )


def agreement(one: Answer, other: Answer) -> int:
    """Tokens until two answers differ."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def repeated(tokens: Sequence[int]) -> float:
    """The share of `GRAM` tokens in a row that were there before; 0 of fewer tokens."""
    grams = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
