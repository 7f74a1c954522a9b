"""The YAML at the head of a model card: read, changed and written without touching what stays.

It is kept as PyYAML's nodes and never turned into values, so that `no`, `1.0` and dates come out as they
went in.
"""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tinysleb.errors import TinyslebError

CARD_NAME = "README.md"
LARGEST_BYTES = 64 * 1024
"""PyYAML reads this in a second or two; cards of language models have a few kB."""
DEEPEST = 50
STRING = "tag:yaml.org,2002:str"

Fields = dict[str, yaml.Node]
"""Top-level keys, in order, and their values."""


def read_card(path: Path) -> str:
    """A card's text, in UTF-8, or in UTF-16 with its mark, or else in Windows-1252.

    Raises TinyslebError if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def split_card(card: str) -> tuple[Fields, str]:
    """The front matter, and the text behind it. Where that is not the YAML of an object, all is text."""
    front, text = _split(card)
    try:
        return _fields(front), text
    except ValueError:
        return {}, card


def card_values(card: str) -> dict[str, Any]:
    """The front matter of a card as lists, objects and texts: `no`, `1.0` and dates as they are written.

    What is null is left out. Raises ValueError, saying why, for one that cannot be read.
    """
    values = {key: _plain(node) for key, node in _fields(_split(card)[0]).items()}
    return {key: value for key, value in values.items() if value is not None}


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [value for value in map(_plain, node.value) if value is not None]
    if isinstance(node, yaml.MappingNode):
        values = {str(key.value): _plain(value) for key, value in node.value}
        return {key: value for key, value in values.items() if value is not None}
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def write_card(fields: Mapping[str, yaml.Node], text: str) -> str:
    """A card with these fields and this text."""
    pairs = [(string(key), value) for key, value in fields.items()]
    node = yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)
    front = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=float("inf"))
    return f"---\n{front}---\n{text}"


def string(text: str) -> yaml.Node:
    """Text as YAML, in quotes where it would otherwise mean something else."""
    return yaml.ScalarNode(STRING, text)


def strings(texts: Sequence[str]) -> yaml.Node:
    """A list of texts."""
    items = [string(text) for text in texts]
    return yaml.SequenceNode("tag:yaml.org,2002:seq", items, flow_style=False)


def texts_of(node: yaml.Node | None) -> list[str]:
    """The texts in a list, or the one that stands in its place."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [item.value for item in items if isinstance(item, yaml.ScalarNode) and item.value]


def _split(card: str) -> tuple[str, str]:
    """What stands between the first line and the next, if both are `---`, and what comes after.

    Lines end where the gguf package takes them to end, which reads the same cards.
    """
    lines = card.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        return "", card
    stripped = [line.rstrip() for line in lines]
    end = stripped.index("---", 1) if "---" in stripped[1:] else len(lines)
    return "\n".join(stripped[1:end]), "".join(lines[end + 1 :])


def _fields(front: str) -> Fields:
    """The fields of a front matter. Raises ValueError, saying why, if they cannot be read."""
    if len(front.encode("utf-8", "replace")) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES} bytes")
    front = front.replace("\t", "  ")  # as the gguf package has it
    try:
        _check_events(front)
        value = yaml.safe_load(front)
        node = yaml.compose(front, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError) as error:  # `!!bool x`: KeyError
        raise ValueError(f"it is not YAML ({' '.join(str(error).split())})") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise ValueError("it is not an object")
    return {key.value: item for key, item in node.value}


def _check_events(front: str) -> None:
    """Raise ValueError for what a short text can make large or slow, before anything is built from it."""
    depth = 0
    for event in yaml.parse(front, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases, with which a few lines can stand for gigabytes")
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
