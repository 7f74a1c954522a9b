"""Render chats by a template, as a program of its own: a request as JSON comes in, texts go out.

A template is written by whoever made the model. The sandbox keeps it from everything but its own loops and
texts; of time and memory it may take little, since this process may not.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5
MEMORY = 2**30
TODAY = datetime(2025, 1, 1)
"""A template may name the day; the same seed gives the same text on another one."""


class Generation(Extension):
    """`{% generation %}` marks what the model said, for those who train it; here it is only that text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What lies between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """From standard input to standard output: for each chat its text, or the error as `{"error": …}`."""
    _limit()
    request = json.load(sys.stdin)
    json.dump(_render_all(request), sys.stdout)


def _limit() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _render_all(request: dict[str, Any]) -> list[str | dict[str, str]]:
    chats = request["chats"]
    try:
        template = _environment().from_string(request["template"])
    except (Exception, RecursionError, MemoryError) as error:
        return [_failed(error)] * len(chats)
    values = {**request["tokens"], "add_generation_prompt": request["ask"]}
    return [_render(template, chat, values, request["longest"]) for chat in chats]


def _render(
    template: Template, chat: list[dict[str, str]], values: dict[str, Any], longest: int
) -> str | dict[str, str]:
    try:
        text = template.render(messages=chat, tools=None, documents=None, **values)
    except (Exception, RecursionError, MemoryError) as error:
        return _failed(error)
    return text if len(text) <= longest else {"error": f"it gives a text of {len(text)} characters"}


def _failed(error: BaseException) -> dict[str, str]:
    return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def _environment() -> ImmutableSandboxedEnvironment:
    """What a template finds in transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without the escapes that jinja's own filter makes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


if __name__ == "__main__":
    main()
