"""Model cards as people have them: what a GGUF has of them, and that our own card is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from real_files.conditions import Condition, check, command, rows
from real_files.outputs import (
    as_gguf,
    model,
    text,
)

from tinysleb.formats.gguf_file import read_gguf


def card(
    front: str, *said: str, encoding: str = "utf-8", absent: tuple[str, ...] = (), **expected: Any
) -> Any:
    """A card with this front matter, what the GGUF has of it, and that our own output can be exported."""

    def expect(folder: Path) -> None:
        as_gguf(*said, absent=absent, **expected)(folder)
        plan, cut = folder.parent / "plan.json", folder.parent / "cut"
        plan.write_text(json.dumps({"blocks": 6, "removed": [2]}))
        status, words = command("prune", folder, "--plan", plan, "-o", cut)
        assert status == 0, words
        (cut / "README.md").read_text(encoding="utf-8")
        status, words = command("export", cut, "--gguf", folder.parent / "cut.gguf")
        assert status == 0, words
        assert {"tinysleb", "pruned"} <= set(read_gguf(folder.parent / "cut.gguf").values()["general.tags"])

    return model(text("README.md", front, encoding)), expect


def card_row(what: str, front: str, peers: str, *said: str, **expected: Any) -> Condition:
    make, expect = card(front, *said, **expected)
    return Condition(what, make, peers, expect)


NO_TAGS = ("general.tags",)


@rows(
    card_row(
        "Windows-1252", "---\nauthor: Jürgen\n---\n“q”", "the converter: UnicodeDecodeError; transformers "
        "reads no card", encoding="cp1252", general__author="Jürgen",
    ),
    card_row(
        "UTF-16, as an editor saves it", "---\nauthor: Jürgen\n---\n", "the converter: UnicodeDecodeError",
        encoding="utf-16", general__author="Jürgen",
    ),
    card_row(
        "a byte order mark", "---\nlicense: mit\n---\n", "the converter finds no front matter; hubs do",
        encoding="utf-8-sig", general__license="mit",
    ),
    card_row(
        "lines that end as on Windows", "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\nx",
        "the converter reads it", general__license="mit", general__tags=["a"],
    ),
    card_row(
        "no tags in a list of tags", "---\ntags: []\n---\n", "an array without items has no type: "
        "`Invalid GGUF metadata value type` (llama.cpp issue 8769)", absent=NO_TAGS,
    ),
    card_row("tags that are null", "---\ntags:\n---\n", "the converter writes none", absent=NO_TAGS),
    card_row(
        "numbers as tags", "---\ntags: [2024, null, a]\n---\n", "the converter loses the null and crashes or "
        "writes numbers, by version; as texts they are what was meant", general__tags=["2024", "a"],
    ),
    card_row("one tag, not in a list", "---\ntags: chat\n---\n", "as the converter", general__tags=["chat"]),
    card_row(
        "lists in a list of tags", "---\ntags: [[a], b]\n---\n", "the converter ends with an error",
        "of `tags`, only texts are used", general__tags=["b"],
    ),
    card_row(
        "a code that YAML takes for false", "---\nlanguage: no\n---\n",
        "the converter loses the language (`no` is false in YAML), other than in a list",
        general__languages=["no"],
    ),
    card_row(
        "a version that looks like a number", "---\nversion: 1.10\n---\n",
        "the converter: `object of type 'float' has no len()`", general__version="1.10",
    ),
    card_row(
        "a name that looks like a date", "---\nname: 2024-01-02\n---\n",
        "the converter: `object of type 'datetime.date' has no len()`", general__name="2024-01-02",
    ),
    card_row(
        "several licences", "---\nlicense: [mit, other]\n---\n", "as the converter",
        general__license="mit,other",
    ),
    card_row(
        "an author that is an object", "---\nauthor: {name: x}\n---\n", "the converter ends with an error",
        "`author` is not used: it should be a text", absent=("general.author",),
    ),
    card_row(
        "a base model described in full", "---\nbase_model:\n- name: X\n  organization: Y\n---\n",
        "as the converter", general__base_model__0__organization="Y",
    ),
    card_row("tabs", "---\ntags:\n\t- a\n---\n", "the converter puts spaces for them", general__tags=["a"]),
    card_row(
        "a key twice", "---\nlicense: mit\nlicense: other\n---\n", "YAML's readers here take the last",
        general__license="other",
    ),
    card_row(
        "a front matter that is a list", "---\n- a\n---\n", "the converter says so and goes on",
        "its front matter is not used: it is not an object",
    ),
    card_row(
        "a front matter that is not YAML", "---\nlicense: mit: x\n---\n",
        "the converter ends with a YAML error; transformers does not care",
        "its front matter is not used: it is not YAML", absent=("general.license",),
    ),
    card_row(
        "a front matter without an end", "---\nlicense: mit\n\n# T\n\n* a: b: c\n",
        "the converter takes all for YAML and ends with an error; hubs see no front matter",
        "its front matter is not used", absent=("general.license",),
    ),
)  # fmt: skip
def test_model_cards(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
