"""JSON from files, which is untrusted: whatever is accepted here can be printed, and written again."""

from __future__ import annotations

import json
import re
from typing import Any

MOST_DIGITS = 308
"""Of a whole number: with more, it may be none for a float."""
MANY_DIGITS, MANY_BYTES = re.compile(r"\d{309}"), re.compile(rb"\d{309}")
SURROGATE, SURROGATE_BYTES = (
    re.compile("(?i)\\\\ud|[\ud800-\udfff]"),
    re.compile(rb"(?i)\\ud|\xed[\xa0-\xbf]"),
)
DEEPEST_NESTING = 100
"""Python's own reader and writer give up somewhere between this and a few thousand."""


def parse_json_object(text: str | bytes, **options: Any) -> dict[str, Any]:
    """The object that a text holds; `options` are those of `json.loads`.

    Raises ValueError if it is not valid JSON, not an object, nested too deeply, has a number that no float
    can hold, or text that cannot be encoded: half of a surrogate pair, which JSON can express, not UTF-8.
    """
    if MANY_BYTES.search(text) if isinstance(text, bytes) else MANY_DIGITS.search(text):
        options["parse_int"] = _bounded
    try:
        value = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it should hold a JSON object, found {type(value).__name__}")
    _check_nesting(value)
    _check_encodable(text, value)
    return value


def _bounded(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_NESTING):
        items = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        level = [item for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _check_encodable(text: str | bytes, value: Any) -> None:
    """Surrogates stand in JSON as escapes, or as they are, which `json.loads` lets through; few files have
    any, and only those are looked at."""
    if SURROGATE_BYTES.search(text) if isinstance(text, bytes) else SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
