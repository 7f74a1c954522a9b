"""Questions with several answers to choose from, in llama.cpp's file formats and as lines of JSON."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_text
from tinysleb.formats.json_objects import parse_json_object

MOST_CHOICES = 100
"""As in llama.cpp."""
HELLASWAG_LINES = 6


@dataclass(frozen=True)
class Question:
    """A text for each choice, and which is right. `heads`: what each begins with that is not scored, where
    that is more than what all have in common."""

    texts: tuple[str, ...]
    answer: int
    heads: tuple[str, ...] = ()


def read_task(kind: str, path: Path) -> list[Question]:
    """The questions of a file; `kind` is one of `TASKS`.

    Raises TinyslebError if the file cannot be read, or holds none; for a question that makes no sense, with
    its line or number.
    """
    questions = list(TASKS[kind](path))
    if not questions:
        raise TinyslebError(f"{path} holds no questions")
    return questions


def _read_hellaswag(path: Path) -> Iterator[Question]:
    """Six lines each: the context, the number of the right ending from 0 on, and four endings."""
    lines = read_text(path).removesuffix("\n").split("\n")
    if len(lines) % HELLASWAG_LINES:
        raise TinyslebError(f"{path} has {len(lines)} lines, which is no multiple of {HELLASWAG_LINES}")
    for start in range(0, len(lines), HELLASWAG_LINES):
        context, answer, *endings = lines[start : start + HELLASWAG_LINES]
        where = f"{path}, line {start + 2}"
        yield _joined(context, endings, _index(answer, len(endings), where), where)


def _read_winogrande(path: Path) -> Iterator[Question]:
    """Comma-separated: a number, a sentence with a gap `_`, two words for it, and which is right, 1 or 2."""
    for number, row in enumerate(csv.reader(read_text(path).splitlines()), start=1):
        where = f"{path}, line {number}"
        if len(row) != 5 or row[1].count("_") < 1:
            raise TinyslebError(
                f"{where} has {len(row)} fields, and a sentence needs a gap `_`: {shown(','.join(row))}",
                "a line is a number, a sentence with a gap, two choices and 1 or 2",
            )
        before, _, behind = row[1].partition("_")
        choices = row[2:4]
        yield Question(
            tuple(before + choice + behind for choice in choices),
            _index(row[4], 3, where, least=1) - 1,
            tuple(before + choice for choice in choices),
        )


def _read_choices(path: Path) -> Iterator[Question]:
    """A JSON object on each line: `context`, `choices`, and `answer`, the number of the right one from 0."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = parse_json_object(line)
        except ValueError as error:
            raise TinyslebError(f"{where} is not JSON: {error}") from error
        wanted: Mapping[str, type] = {"context": str, "choices": list, "answer": int}
        for name, kind in wanted.items():
            if not isinstance(found.get(name), kind):
                value = found.get(name)
                raise TinyslebError(f"{where}: `{name}` is {shown(value)}, and not of type {kind.__name__}")
        choices = [each for each in found["choices"] if isinstance(each, str)]
        if len(choices) != len(found["choices"]):
            raise TinyslebError(f"{where}: a choice is not a text")
        yield _joined(found["context"], choices, _index(str(found["answer"]), len(choices), where), where)


def _read_multiple_choice(path: Path) -> Iterator[Question]:
    """Binary, little-endian: the number of questions, where each begins, then each: its text, and twice a
    list of answers with their labels, of which the first has one that is right. Texts follow their size."""
    reader = _Reader(path)
    (count,) = reader.numbers(1)
    reader.numbers(count)
    for number in range(1, count + 1):
        where = f"{path}, question {number}"
        context = reader.text()
        choices, labels = reader.answers(where)
        reader.answers(where)
        if labels.count(1) != 1:
            raise TinyslebError(f"{where} has {labels.count(1)} right answers")
        yield _joined(context, choices, labels.index(1), where)


class _Reader:
    """What follows in a binary file. Raises TinyslebError where it ends before its time."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 0
        try:
            self.bytes = path.read_bytes()
        except OSError as error:
            raise TinyslebError(f"cannot read {path}: {error.strerror}") from error

    def take(self, size: int) -> bytes:
        """So many bytes."""
        start, self.place = self.place, self.place + size
        if self.place > len(self.bytes):
            raise TinyslebError(
                f"{self.path} ends at byte {len(self.bytes)}; {size} from {start} on are needed"
            )
        return self.bytes[start : self.place]

    def numbers(self, count: int) -> tuple[int, ...]:
        """So many uint32."""
        return struct.unpack(f"<{count}I", self.take(4 * count))

    def text(self) -> str:
        """A text behind its size."""
        return self.take(*self.numbers(1)).decode("utf-8", "replace")

    def answers(self, where: str) -> tuple[list[str], list[int]]:
        """Answers, and for each whether it is right."""
        (count,) = self.numbers(1)
        if count > MOST_CHOICES:
            raise TinyslebError(f"{where} has {count} answers; at most {MOST_CHOICES} are read")
        texts = [self.text() for _ in range(count)]
        return texts, list(self.numbers(count))


def _joined(context: str, choices: list[str], answer: int, where: str) -> Question:
    if len(choices) < 2 or not context or not all(choices):
        raise TinyslebError(f"{where}: a question needs a text and two answers or more, none of them empty")
    return Question(tuple(f"{context} {choice}" for choice in choices), answer)


def _index(text: str, stop: int, where: str, least: int = 0) -> int:
    if not text.strip().isdecimal() or not least <= int(text) < stop:
        raise TinyslebError(f"{where}: the right answer is {shown(text)}, not one of {least} … {stop - 1}")
    return int(text)


TASKS: Mapping[str, Callable[[Path], Iterator[Question]]] = {
    "hellaswag": _read_hellaswag,
    "winogrande": _read_winogrande,
    "multiple_choice": _read_multiple_choice,
    "choices": _read_choices,
}
"""Readers of the files that llama-perplexity takes for these tasks, and of our own."""
