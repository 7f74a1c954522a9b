"""One or a few changes to a JSON value: edge values, wrong types, huge and deep ones, missing and strange
names."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

EDGES: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 31, 64, 255, 65537, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    10**30, -(2**63), 0.0, -0.0, 0.5, 1.5, 1e-9, 1e-46, 1e38, 1e39, 1e300, -1e300,
    math.nan, math.inf, -math.inf,
    "", "x", "0", "1", "true", "\ud800", "\x1b[31mred", "a\nb", "a\x00b", "../../etc/passwd", "/dev/zero",
    "é" * 300, "a" * 5000, "9" * 5000, "{{", "𝔘\u202e", True, False, None, [], {}, [[]], [{}], [None],
    {"": None}, [0, 0], [-1], [1, "a"], ["x", ["y"]], {"a": {"b": []}}, ["\x1b]0;x\x07"], list(range(3000)),
    int("9" * 4000),
)  # fmt: skip
"""What a value is replaced by."""
LONG, DEEP = 20_000, 3000


def changed_json(value: Any, random: Random) -> tuple[Any, str]:
    """The value with a change somewhere, and what was changed."""
    path: list[str] = []
    parent, key = None, None
    here = value
    while isinstance(here, dict | list) and len(here) and (not path or random.random() < 0.8):
        parent = here
        key = random.choice(list(here) if isinstance(here, dict) else range(len(here)))
        path.append(str(key)[:40])
        here = here[key]
    if parent is None:
        return random.choice(EDGES), "all of it"
    what = _change(parent, key, random)
    return value, f"{'.'.join(path)}: {what}"


def _change(parent: Any, key: Any, random: Random) -> str:
    old, kind = parent[key], random.randrange(10)
    if kind == 0:
        del parent[key]
        return "deleted"
    if kind == 1 and isinstance(parent, dict):
        name = random.choice([*(v for v in EDGES if isinstance(v, str)), str(key).upper(), f"{key}_"])
        parent[name] = parent.pop(key)
        return f"renamed {name[:20]!a}"
    if kind == 2 and isinstance(parent, list):
        parent.extend([old] * random.choice([1, 3, 1000]))
        return "repeated"
    if kind in (3, 4) and isinstance(old, int | float):
        parent[key] = random.choice(
            [old + 1, old - 1, old * 2, old // 2, -old, old * 1000, _third(old), str(old), [old]]
        )
        return f"from {old!r:.40} to {parent[key]!r:.40}"
    if kind == 3 and isinstance(old, str):
        places = random.randrange(len(old) + 1)
        parent[key] = old[:places] + random.choice([v for v in EDGES if isinstance(v, str)]) + old[places:]
        return f"to {parent[key]!a:.60}"
    if kind == 5:
        return _enlarge(parent, key, random)
    parent[key] = copy.deepcopy(random.choice(EDGES))
    return f"to {parent[key]!a:.40}" if not isinstance(parent[key], int) else "to a number"


def _third(number: float) -> float:
    return number / 3 if abs(number) < 1e300 else number // 3


def _enlarge(parent: Any, key: Any, random: Random) -> str:
    old = parent[key]
    if random.random() < 0.5:
        times = LONG if len(json_text(old)) < 1000 else 2  # a repr cannot be as deep
        parent[key] = old * times if isinstance(old, str) else [old] * times
        return f"{times} times"
    for _ in range(random.choice([10, 90, DEEP])):
        old = [old]
    parent[key] = old
    return "nested"


def json_text(value: Any) -> bytes:
    """Serialised, however deep it is, and with what JSON does not have."""
    opening = closing = ""
    while isinstance(value, list) and len(value) == 1:
        opening, closing, value = opening + "[", closing + "]", value[0]
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "[" * DEEP + "]" * DEEP
    except ValueError:  # a whole number of more digits than Python prints
        text = "9" * 5000
    return (opening + text + closing).encode()
