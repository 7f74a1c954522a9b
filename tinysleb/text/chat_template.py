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

Chat = Sequence[Mapping[str, str]]
"""Messages, each with a `role` and its `content`."""


def render_chats(template: str, chats: Sequence[Chat], special_tokens: Mapping[str, str]) -> list[str | None]:
    """Each chat as text, up to where the answer begins; None for one that the template does not take.

    `special_tokens`: texts by the names that templates use. Raises TinyslebError if none can be rendered, or
    not in a few seconds.
    """
    request = {"template": template, "chats": chats, "tokens": dict(special_tokens)}
    try:
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            input=json.dumps(request), capture_output=True, encoding="utf-8", timeout=PATIENCE, check=True,
        )  # fmt: skip
        rendered = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise TinyslebError(
            f"the model's chat template has not come to an end in {PATIENCE} seconds"
        ) from error
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TinyslebError(f"the model's chat template cannot be rendered: {shown(str(error))}") from error
    errors = [item["error"] for item in rendered if isinstance(item, dict)]
    if len(errors) == len(chats):
        raise TinyslebError(f"the model's chat template cannot be rendered: {shown(errors[0])}")
    return [item if isinstance(item, str) else None for item in rendered]


def own_bos(special_tokens: Mapping[str, str], encode: Callable[[str], list[int]]) -> str:
    """The BOS token at the front of a rendered chat that is to be left out, since the tokenizer puts one
    there itself; '' if it does not."""
    return special_tokens.get("bos_token", "") if encode("") else ""
