"""Chats in the form that a model was trained on: rendered from its own template, by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tinysleb.errors import TinyslebError, shown

PROGRAM = Path(__file__).parent / "render_chats.py"
PATIENCE = 30
"""Seconds, of which a busy machine may spend most on starting Python."""

LONGEST_QUESTION, LONGEST_CHAT = 2**16, 2**24
"""Characters of a rendered chat: of ours, and of those that are given."""

Chat = Sequence[Mapping[str, str]]
"""Messages, each with a `role` and its `content`."""


def render_chats(template: str, chats: Sequence[Chat], special_tokens: Mapping[str, str]) -> list[str | None]:
    """Each chat as text, up to where the answer begins; None for one that the template does not take.

    `special_tokens`: texts by the names that templates use. Raises TinyslebError if none can be rendered, or
    not in a few seconds.
    """
    rendered = _rendered(template, chats, special_tokens, LONGEST_QUESTION, True)
    errors = [item["error"] for item in rendered if isinstance(item, dict)]
    if len(errors) == len(chats):
        raise TinyslebError(f"the model's chat template cannot be rendered: {shown(errors[0])}")
    return [item if isinstance(item, str) else None for item in rendered]


def render_whole_chats(
    template: str, chats: Sequence[Chat], special_tokens: Mapping[str, str]
) -> list[str | TinyslebError]:
    """Each chat as text, answers and all, or why the template does not take it. Raises TinyslebError if
    that takes more than a few seconds."""
    return [
        TinyslebError(shown(item["error"])) if isinstance(item, dict) else item
        for item in _rendered(template, chats, special_tokens, LONGEST_CHAT, False)
    ]


def _rendered(
    template: str, chats: Sequence[Chat], special_tokens: Mapping[str, str], longest: int, ask: bool
) -> list[str | dict[str, str]]:
    """Each chat as text of at most `longest` characters, or the error; with `ask`, an answer is begun."""
    request = {
        "template": template, "chats": chats, "tokens": dict(special_tokens), "longest": longest, "ask": ask
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            input=json.dumps(request), capture_output=True, encoding="utf-8", timeout=PATIENCE, check=True,
        )  # fmt: skip
        rendered: list[str | dict[str, str]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise TinyslebError(
            f"the model's chat template has not come to an end in {PATIENCE} seconds"
        ) from error
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TinyslebError(f"the model's chat template cannot be rendered: {shown(str(error))}") from error
    return rendered


def own_bos(special_tokens: Mapping[str, str], encode: Callable[[str], list[int]]) -> str:
    """The BOS token at the front of a rendered chat that is to be left out, since the tokenizer puts one
    there itself; '' if it does not."""
    return special_tokens.get("bos_token", "") if encode("") else ""
