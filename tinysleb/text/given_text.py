"""Texts as they are given: plain ones, and chats that are rendered in the model's own template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.json_objects import parse_json_object
from tinysleb.formats.text_file import BROKEN, text_between, text_parts, text_size
from tinysleb.text.chat_template import Chat, own_bos, render_whole_chats
from tinysleb.text.tokenizer import Tokenizer

CHATS_SUFFIX = ".jsonl"
LONGEST_FIRST_LINE = 1 << 24
AT_ONCE, CHARACTERS_AT_ONCE = 1000, 1 << 20
"""Chats, or characters of them, that are rendered at a time: each time starts a program."""


class GivenText(Protocol):
    """A text in a file. `replaced`: how many bytes of what was read were not UTF-8, and became U+FFFD."""

    replaced: int

    def size(self) -> int:
        """Its bytes as they lie there. Raises TinyslebError if the file is not there."""

    def parts(self) -> Iterator[str]:
        """All of it, in parts. Raises TinyslebError if it cannot be read."""

    def between(self, start: int, stop: int) -> str:
        """What of it lies wholly between two bytes of the file. Raises TinyslebError as `parts` does."""


@dataclass
class PlainText:
    """A text file, as it is."""

    path: Path
    replaced: int = field(default=0, init=False)

    def size(self) -> int:
        """As in `GivenText`."""
        return text_size(self.path)

    def parts(self) -> Iterator[str]:
        """As in `GivenText`."""
        return map(self._repaired, text_parts(self.path))

    def between(self, start: int, stop: int) -> str:
        """As in `GivenText`."""
        return self._repaired(text_between(self.path, start, stop))

    def _repaired(self, text: str) -> str:
        repaired, count = BROKEN.subn("\ufffd", text)
        self.replaced += count
        return repaired


@dataclass
class ChatText(PlainText):
    """A file with a chat in each line, `{"messages": [{"role": …, "content": …}, …]}`, one behind the other
    as the template renders them. `bos` is left out in front, where the tokenizer puts it."""

    template: str
    special_tokens: Mapping[str, str]
    bos: str

    def parts(self) -> Iterator[str]:
        """As in `GivenText`. Raises TinyslebError also for a line that is no chat, or that the template does
        not take."""
        chats, first = self._chats(), True
        while batch := list(islice(chats, AT_ONCE)):
            for some in _portions(batch):
                text = "".join(self._rendered(some))
                yield text.removeprefix(self.bos) if first else text
                first = False

    def between(self, start: int, stop: int) -> str:
        """As in `GivenText`; a line that is no chat is cut off by `start` or `stop`, most likely."""
        found: list[tuple[int, Chat]] = []
        for line in super().between(start, stop).split("\n"):
            with suppress(ValueError):
                found.append((0, _chat_in(line)))
        return "".join(self._rendered(found)) if found else ""

    def _chats(self) -> Iterator[tuple[int, Chat]]:
        """All chats, with the numbers of their lines."""
        for number, line in enumerate(_lines(super().parts()), 1):
            if not line.strip():
                continue
            try:
                yield number, _chat_in(line)
            except ValueError as error:
                raise TinyslebError(
                    f"{self.path}: line {number} is not a chat, but {shown(line)}",
                    'a chat is an object such as {"messages": [{"role": "user", "content": "Hi"}]}',
                ) from error

    def _rendered(self, chats: Sequence[tuple[int, Chat]]) -> Iterator[str]:
        found = render_whole_chats(self.template, [chat for _, chat in chats], self.special_tokens)
        for (number, _), text in zip(chats, found, strict=True):
            if isinstance(text, TinyslebError):
                where = f"{self.path}: line {number}" if number else f"{self.path}: a chat"
                raise TinyslebError(
                    f"{where} is not taken by the model's chat template: {text.message}",
                    "leave such chats out, or change them to what the template takes",
                )
            yield text


def given_texts(weights: Checkpoint, tokenizer: Tokenizer) -> Callable[[Path], GivenText]:
    """How to open the texts that are given for a model: as they are or, if they hold chats, rendered.

    Raises TinyslebError, when one is opened that holds chats, if the model has no chat template.
    """

    def opened(path: Path) -> GivenText:
        if not holds_chats(path):
            return PlainText(path)
        if not (template := weights.chat_template()):
            raise TinyslebError(
                f"{path} holds chats, and {weights.path} has no chat template to render them in",
                "give a model that chats, or plain text",
            )
        special_tokens = weights.tokenizer_files().special_tokens
        return ChatText(path, template, special_tokens, own_bos(special_tokens, tokenizer.encode))

    return opened


def holds_chats(path: Path) -> bool:
    """Whether a file is called JSONL and begins with a chat."""
    if path.suffix.lower() != CHATS_SUFFIX:
        return False
    with suppress(OSError, ValueError), path.open("rb") as file:
        return "messages" in parse_json_object(file.readline(LONGEST_FIRST_LINE))
    return False


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """The lines of a text that comes in parts."""
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        yield from whole
    yield rest


def _chat_in(line: str) -> Chat:
    """Raises ValueError for a line that is none."""
    messages: Any = parse_json_object(line).get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("no messages")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise ValueError("a message without a role or its content")
    return messages


def _portions(chats: Sequence[tuple[int, Chat]]) -> Iterator[list[tuple[int, Chat]]]:
    """Chats in their order, no more of them together than may be rendered at once."""
    portion: list[tuple[int, Chat]] = []
    characters = 0
    for chat in chats:
        portion.append(chat)
        characters += sum(len(message["content"]) for message in chat[1])
        if characters >= CHARACTERS_AT_ONCE:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion
