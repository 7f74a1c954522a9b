"""Which of several answers a model finds the most probable; what they have in common goes through it once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import obey
from tinysleb.errors import TinyslebError
from tinysleb.measure.tasks import Question
from tinysleb.model.blocks import load_blocks
from tinysleb.model.chunks import chunks
from tinysleb.model.forward import block_forward, embed
from tinysleb.model.head import final_norm, token_losses
from tinysleb.model.positions import Position, RotaryTable, block_positions

PACKED = 512
"""Tokens of questions that go through the model side by side, as one row."""
TRAILING = 3
"""Tokens behind the choice of a winogrande sentence, with fewer of which the choice is scored as well."""


@dataclass(frozen=True)
class Choices:
    """A question as tokens, one sequence for each choice, and the tokens of it that are scored, `starts` to
    `stops`; `shared`: how many at the front all have in common."""

    sequences: Sequence[Sequence[int]]
    starts: Sequence[int]
    stops: Sequence[int]
    shared: int
    answer: int


@dataclass(frozen=True)
class Accuracy:
    """How often the right answer is the most probable: `acc` by the sum of its tokens' log-probabilities,
    `acc_norm` by their mean, as llama.cpp has it; each with its standard error."""

    questions: int
    acc: float
    acc_error: float
    acc_norm: float
    acc_norm_error: float


def drawn(questions: Sequence[Question], most: int) -> Sequence[Question]:
    """At most so many of them, always the same."""
    return questions if len(questions) <= most else random.Random(0).sample(questions, most)


def encode_question(question: Question, encode: Callable[[str], list[int]], context: int) -> Choices:
    """Tokens, and which are scored: those after what all have in common; of a winogrande sentence those after
    the choice, without the last, as llama.cpp does.

    `context`: the most tokens that the model takes. Raises TinyslebError for a longer question.
    """
    sequences = [encode(text) for text in question.texts]
    if (longest := max(map(len, sequences))) > context:
        raise TinyslebError(
            f"a question of {longest} tokens is longer than the model's context of {context}: "
            f"{question.texts[0][:60]!r}…"
        )
    shared = next(
        (place for place, tokens in enumerate(zip(*sequences, strict=False)) if len(set(tokens)) > 1),
        min(map(len, sequences)),
    )
    shared = min(shared, min(map(len, sequences)) - 1)
    starts, stops = [max(1, shared)] * len(sequences), [len(tokens) for tokens in sequences]
    if question.heads:
        if all(stop - shared > TRAILING for stop in stops):
            ends = [len(encode(head)) for head in question.heads]
            starts = [min(end, stop - 1) for end, stop in zip(ends, stops, strict=True)]
        stops = [stop - (stop - start > 1) for start, stop in zip(starts, stops, strict=True)]
    return Choices(sequences, starts, stops, shared, question.answer)


@torch.inference_mode()
def score_choices(
    weights: Weights,
    questions: Sequence[Choices],
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
) -> Accuracy:
    """Answer questions, as many at a time as fit into memory; blocks are read once for these.

    Raises TinyslebError if a loss is not finite.
    """
    rows = _packed(questions)
    memory = compute.memory_plan(weights, 0, len(rows), max(sum(map(_size, row)) for row in rows))
    obey(memory)
    found: list[tuple[bool, bool]] = []
    for first, last in chunks(len(rows), memory.windows):
        for row, losses in zip(rows[first:last], _losses(weights, rows[first:last], compute), strict=True):
            if not losses.isfinite().all():
                raise not_finite(weights, "an answer's probability")
            found += _answers(row, losses)
        progress(last / len(rows))
    acc, acc_norm = (sum(each) / len(found) for each in zip(*found, strict=True))
    errors = [math.sqrt(each * (1 - each) / max(1, len(found) - 1)) for each in (acc, acc_norm)]
    return Accuracy(len(found), acc, errors[0], acc_norm, errors[1])


def _size(question: Choices) -> int:
    """The tokens that go through the model."""
    return question.shared + sum(len(tokens) - question.shared for tokens in question.sequences)


def _packed(questions: Sequence[Choices]) -> list[list[Choices]]:
    """The questions in order, in rows of about `PACKED` tokens."""
    rows: list[list[Choices]] = []
    filled = PACKED
    for question in questions:
        if filled + (size := _size(question)) > PACKED:
            rows.append([])
            filled = 0
        rows[-1].append(question)
        filled += size
    return rows


@dataclass(frozen=True)
class _Row:
    """Questions side by side: tokens `[T]`, the place of each in its text, which see which `[T, T]`, and of
    each scored token where it is predicted and what it is, choice by choice."""

    tokens: Tensor
    places: Tensor
    sees: Tensor
    predicted_at: Tensor
    targets: Tensor


def _lay_out(questions: Sequence[Choices]) -> _Row:
    tokens: list[int] = []
    places: list[int] = []
    branches: list[tuple[range, range]] = []
    predicted_at: list[int] = []
    targets: list[int] = []
    for question in questions:
        shared = range(len(tokens), len(tokens) + question.shared)
        tokens += question.sequences[0][: question.shared]
        places += range(question.shared)
        branches.append((shared, shared))
        for sequence, start, stop in zip(question.sequences, question.starts, question.stops, strict=True):
            own = range(len(tokens), len(tokens) + len(sequence) - question.shared)
            tokens += sequence[question.shared :]
            places += range(question.shared, len(sequence))
            branches.append((own, shared))
            at = [*shared, *own]
            predicted_at += at[start - 1 : stop - 1]
            targets += sequence[start:stop]
    sees = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for own, shared in branches:
        sees[own.start : own.stop, shared.start : shared.stop] = True
        sees[own.start : own.stop, own.start : own.stop] = True
    numbers = map(torch.tensor, (predicted_at, targets))
    return _Row(torch.tensor(tokens), torch.tensor(places), sees.tril_(), *numbers)


def _losses(weights: Weights, rows: Sequence[Sequence[Choices]], compute: Compute) -> list[Tensor]:
    """Of the scored tokens of each row, float32 on the CPU."""
    laid = [_lay_out(row) for row in rows]
    config, device = weights.config, compute.device
    length = 1 + max(int(row.places.max()) for row in laid)
    states = [embed(weights, row.tokens[None].to(device)) for row in laid]
    blocks = load_blocks(weights, range(config.blocks), compute.dtype, device, ahead=False)
    for block, position in zip(blocks, block_positions(config, length, device), strict=True):
        for number, row in enumerate(laid):
            states[number] = block_forward(states[number], block, config, _position_of(row, position))
    losses = []
    for row, each in zip(laid, states, strict=True):
        normed = final_norm(weights, each[:, row.predicted_at], torch.float32)
        losses.append(token_losses(weights, normed, row.targets.to(device), compute.dtype)[0].cpu())
    return losses


def _position_of(row: _Row, position: Position) -> Position:
    """A block's position for tokens that are not in one sequence."""
    table, mask = position.table, row.sees
    if position.mask is not None:
        mask = mask & position.mask.cpu()[row.places[:, None], row.places]
    if table is not None:
        places = row.places.to(table.cos.device)
        table = RotaryTable(table.cos[places], table.sin[places])
    return Position(table, mask if table is None else mask.to(table.cos.device))


def _answers(questions: Sequence[Choices], losses: Tensor) -> list[tuple[bool, bool]]:
    """For each question whether the choice with the least loss is right: by the sum, and by the mean."""
    found, place = [], 0
    for question in questions:
        sums, means = [], []
        for start, stop in zip(question.starts, question.stops, strict=True):
            scored = losses[place : place + stop - start].double()
            sums.append(scored.sum().item())
            means.append(scored.mean().item())
            place += stop - start
        found.append(tuple(each.index(min(each)) == question.answer for each in (sums, means)))
    return [(by_sum, by_mean) for by_sum, by_mean in found]
