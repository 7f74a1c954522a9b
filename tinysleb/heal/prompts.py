"""What the sequences begin with that a model continues by itself: with nothing, or inside a chat."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.errors import TinyslebError
from tinysleb.heal.prompt_texts import EXCHANGES, QUESTIONS, SYSTEM_PROMPTS
from tinysleb.text.chat_template import own_bos, render_chats
from tinysleb.text.long_text import Unfinished
from tinysleb.text.tokenizer import Tokenizer, open_tokenizer

END_OF_TEXT = "<|endoftext|>"
ROLES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
"""Of the messages before an answer, in chats of several forms."""
SHORT = 6
"""Questions that begin as in the midst of a chat, for one of each of those: a system prompt that came with
every question would take the place of text."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ChatForm:
    """A chat as text, with gaps for what is said: `pieces` lie before, between and behind the messages."""

    roles: tuple[str, ...]
    pieces: tuple[str, ...]

    def filled(self, messages: Sequence[str]) -> str:
        """The text of a chat."""
        between = zip(self.pieces, messages, strict=False)
        return "".join(piece + message for piece, message in between) + self.pieces[-1]


def self_prompts(weights: Checkpoint, seed: int, say: Callable[[str], None]) -> Iterator[list[int]]:
    """Tokens that sequences begin with, without end: half of the time only the one that a text begins with,
    and of a model that chats, a quarter a user's turn that it writes itself, a quarter a question.

    `say` is told if the chat template cannot be used; then all begin with nothing. Raises TinyslebError if
    there is no tokenizer, or no token that a text begins with.
    """
    tokenizer, rows = Unfinished(open_tokenizer(weights)), weights.config.vocab_size
    start = _start(tokenizer, rows)
    forms = _with_rows(_chat_forms(weights, tokenizer, say), tokenizer, rows, say)
    if not forms:
        return repeat(start)
    prompts = _mixed(start, forms, tokenizer.encode, random.Random(f"prompts of seed {seed}"))
    return (prompt if max(prompt) < rows else start for prompt in prompts)


def chat_questions(weights: Checkpoint, seed: int, say: Callable[[str], None]) -> Iterator[list[int]]:
    """Tokens of chats that begin with a question, to be answered, without end; none if the model does not
    chat, and then `say` is told why it cannot, if it has a template. Raises TinyslebError if there is no
    tokenizer."""
    tokenizer, rows = Unfinished(open_tokenizer(weights)), weights.config.vocab_size
    forms = _with_rows(_chat_forms(weights, tokenizer, say), tokenizer, rows, say)
    plain = [form for form in forms if form.roles == ROLES[0]]
    if not plain:
        return iter(())
    asked = questions(random.Random(f"questions of seed {seed}"))
    prompts = (tokenizer.encode(plain[-1].filled([question])) for question in asked)
    return (prompt for prompt in prompts if max(prompt) < rows)


def text_ends(weights: Checkpoint, tokenizer: Tokenizer, more: Sequence[str] = ()) -> frozenset[int]:
    """The tokens that end what a model writes, as far as its files name them, and `more` that it may know.

    `tokenizer` puts nothing behind a text.
    """
    front = len(tokenizer.encode(""))
    texts = END_OF_TEXT, weights.tokenizer_files().special_tokens.get("eos_token", ""), *more
    tokens = [tokenizer.encode(text)[front:] for text in texts if text]
    return frozenset(found[0] for found in tokens if len(found) == 1)


def check_prompts(weights: Checkpoint) -> None:
    """Raise TinyslebError if the model has no token that a sampled text can begin with."""
    _start(Unfinished(open_tokenizer(weights)), weights.config.vocab_size)


def chat_forms(template: str, special_tokens: Mapping[str, str]) -> list[ChatForm]:
    """The forms of chat that a template takes, as often as they are to occur; first a question in the midst
    of a chat. Raises TinyslebError if it takes no plain question."""
    marks = [f"Message{number}Here" for number in range(max(map(len, ROLES)))]
    chats = [
        [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=False)] for roles in ROLES
    ]
    forms = {}
    for roles, text in zip(ROLES, render_chats(template, chats, special_tokens), strict=True):
        if pieces := _pieces(text or "", marks[: len(roles)]):
            forms[roles] = ChatForm(roles, pieces)
    if ROLES[0] not in forms:
        raise TinyslebError("the model's chat template does not give a question as it is")
    first, answer = forms[ROLES[0]].pieces
    later = forms[ROLES[2]].pieces[2] if ROLES[2] in forms else first
    answered, begun = (special_tokens.get(name, "") for name in ("eos_token", "bos_token"))
    opening = later.removeprefix(answered).lstrip().removeprefix(begun)
    return [ChatForm(ROLES[0], (opening, answer))] * SHORT + list(forms.values())


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def questions(generator: random.Random) -> Iterator[str]:
    """Questions and requests of all kinds, without end; none comes twice before all of its kind have come."""
    kinds = [
        _endless([form.replace("{}", topic) for form in kind.forms for topic in kind.topics], generator)
        for kind in QUESTIONS
    ]
    percents = [kind.percent for kind in QUESTIONS]
    while True:
        yield next(generator.choices(kinds, percents)[0])


def _chat_forms(weights: Checkpoint, tokenizer: Tokenizer, say: Callable[[str], None]) -> list[ChatForm]:
    """None if the model does not chat, or its template cannot be used.

    A BOS token at the front is left out where the tokenizer puts one there itself.
    """
    if not (template := weights.chat_template()):
        return []
    special_tokens = weights.tokenizer_files().special_tokens
    try:
        forms = chat_forms(template, special_tokens)
    except TinyslebError as error:
        say(f"no chats are sampled from the model: {error.one_line}")
        return []
    bos = own_bos(special_tokens, tokenizer.encode)
    return [ChatForm(form.roles, (form.pieces[0].removeprefix(bos), *form.pieces[1:])) for form in forms]


def _with_rows(
    forms: Sequence[ChatForm], tokenizer: Tokenizer, rows: int, say: Callable[[str], None]
) -> list[ChatForm]:
    """The forms of chat whose tokens the model has rows for. `say` is told of those that are left out."""
    largest = {form: max(tokenizer.encode("".join(form.pieces)), default=0) for form in forms}
    kept = [form for form in forms if largest[form] < rows]
    if forms and forms[0] not in kept:
        kept = []  # which the others are mixed with
    if lost := [largest[form] for form in forms if form not in kept and largest[form] >= rows]:
        what = "no chats are" if not kept else "some forms of chat are not"
        say(
            f"{what} sampled from the model: its chat template uses token {max(lost)}, "
            f"and its vocabulary has {rows} rows"
        )
    return kept


def _pieces(text: str, marks: Sequence[str]) -> tuple[str, ...]:
    """What lies around the marks, if each of them is there once, in order; else nothing."""
    pieces = re.split("|".join(map(re.escape, marks)), text)
    filled = "".join(piece + mark for piece, mark in zip(pieces, marks, strict=False)) + pieces[-1]
    return tuple(pieces) if len(pieces) == len(marks) + 1 and filled == text else ()


def _mixed(
    start: list[int], forms: Sequence[ChatForm], encode: Callable[[str], list[int]], generator: random.Random
) -> Iterator[list[int]]:
    opening = encode(forms[0].pieces[0])
    asked = questions(generator)
    exchanges, systems = _endless(EXCHANGES, generator), _endless(SYSTEM_PROMPTS, generator)
    chosen = _endless(forms, generator)
    while True:
        form = next(chosen)
        messages = [next(systems)] if form.roles[0] == "system" else []
        messages += next(exchanges) if "assistant" in form.roles else ()
        yield from (start, opening, start, encode(form.filled([*messages, next(asked)])))


def _endless(items: Sequence[Item], generator: random.Random) -> Iterator[Item]:
    """All of them in random order, and again in another."""
    while True:
        yield from generator.sample(items, len(items))


def _start(tokenizer: Tokenizer, rows: int) -> list[int]:
    """The token between texts, or the one that a text begins with, if the model has rows for it."""
    between = tokenizer.encode(END_OF_TEXT)
    first = tokenizer.encode("")
    if len(between) == len(first) + 1 and between[-1] < rows:
        return between[-1:]
    if not first or max(first) >= rows:
        problem = f"is {max(first)}, and the model has {rows} rows" if first else "is not there"
        raise TinyslebError(
            f"the token that a text begins with {problem}, so that no text can be sampled",
            "heal on text alone: --self-text 0",
        )
    return first
