"""Texts that are larger than memory should be: encoded in parts, to the tokens that the whole would give.

A text is cut where tokenizers begin a new token anyway: before a single space between two letters, or behind
a line end before a letter or digit. Whether one does is tried on what lies around each cut, and a part is
encoded with a few characters before it (whose tokens are dropped), since some tokenizers put a space before a
text. Without any such place the text stays whole, however long it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinysleb.text.tokenizer import Tokenizer

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]

AROUND = 128
"""Characters on either side of a cut that it is tried on."""
TRIES = 16
"""Places that are tried for a cut, the last ones of their kind."""


@dataclass(frozen=True)
class Cut:
    """A place where a text can be cut, and what stands for the text before it."""

    place: re.Pattern[str]
    guard: str


CUTS = (
    Cut(re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])"), "a"),
    Cut(re.compile(r"(?<=\S\n)(?=[^\W_])"), "a\n"),
)


class PartEncoder:
    """Encodes a text that comes in parts; `before` and `behind` are the tokens put around a whole one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self.before, self.behind = tokens_around(tokenizer)
        self._guards = {cut.guard: self.plain(cut.guard) for cut in CUTS}

    def plain(self, text: str) -> list[int]:
        """The tokens of a text without those put around it."""
        tokens = self._encode(text)
        return tokens[len(self.before) : len(tokens) - len(self.behind)]

    def encode(self, parts: Iterable[str]) -> Iterator[Tokens]:
        """The tokens of the text that the parts make up, in order; a text of one part is encoded as it is."""
        text, guard = "", ""
        yield _array(self.before)
        for part in parts:
            earlier, text = len(text), text + part
            if earlier and part and (found := self._find_cut(text, earlier)):
                place, next_guard = found
                yield _array(self._guarded(guard, text[:place]))
                text, guard = text[place:], next_guard
        yield _array([*self._guarded(guard, text), *self.behind])

    def _guarded(self, guard: str, text: str) -> Sequence[int]:
        """The tokens of a text behind another one that `guard` stands for."""
        return self.plain(guard + text)[len(self._guards[guard]) :] if guard else self.plain(text)

    def _find_cut(self, text: str, most: int) -> tuple[int, str] | None:
        """The last place up to `most` characters where a text can be cut, and the guard for what follows."""
        least = most // 2
        for cut in CUTS:
            places = [match.start() for match in cut.place.finditer(text, least, most)]
            for place in reversed(places[-TRIES:]):
                if self._is_sound(text, place, cut.guard):
                    return place, cut.guard
        return None

    def _is_sound(self, text: str, place: int, guard: str) -> bool:
        left, right = text[max(0, place - AROUND) : place], text[place : place + AROUND]
        guarded, tokens = self.plain(guard + right), self._guards[guard]
        if guarded[: len(tokens)] != tokens:
            return False
        return self.plain(left + right) == self.plain(left) + guarded[len(tokens) :]


def tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind every text."""
    around, text = tokenizer.encode(""), tokenizer.encode("a")
    same = (number for number, pair in enumerate(zip(around, text, strict=False)) if pair[0] != pair[1])
    before = next(same, min(len(around), len(text)))
    return around[:before], around[before:]


def _array(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, dtype=np.int32)


@dataclass(frozen=True)
class Unfinished:
    """A tokenizer for texts that are to be continued: without the tokens that it puts behind whole ones."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        tokens = self.tokenizer.encode(text)
        return tokens[: len(tokens) - self._behind]

    @cached_property
    def _behind(self) -> int:
        return len(tokens_around(self.tokenizer)[1])
