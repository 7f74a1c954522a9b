"""The YAML at the head of a model card: read, changed and written without touching what stays.

It is kept as PyYAML's nodes and never turned into values, so that `no`, `1.0` and dates come out as they
went in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """A card's text, in UTF-8 or else in Windows-1252. Raises TinyslebError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
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


def check_card(path: Path) -> None:
    """Raise TinyslebError if there is a card whose front matter no program should be given."""
    if not path.is_file():
        return
    try:
        _fields(_split(read_card(path))[0])
    except ValueError as error:
        raise TinyslebError(
            f"{path}: its front matter cannot be read: {str(error).splitlines()[0]}", "repair or delete it"
        ) from error


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
