"""The model card, as text and in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from reference import make_llama
from tinysleb.export.front_matter import card_values, read_card
from tinysleb.export.model_card import card_from_metadata, model_card

Run = Callable[..., Result]
PLAN = {
    "blocks": 6, "removed": [3, 1], "loss": 1.0, "settings": {"text": "wiki.txt", "metric": "perplexity"},
    "rounds": [{"loss": 1.5}, {"loss": 2.0}],
}  # fmt: skip
PROVENANCE = {"dtype": "bfloat16", "device": "cuda", "tokens": 32768, "self_tokens": 16384}
ORIGINAL = """---
license: apache-2.0
tags:
- chat
- pruned
base_model:
- somebody/else
language: [en]
---
# Tiny

A model.
"""


def test_front_matter_is_kept_but_for_what_changes() -> None:
    card = model_card(ORIGINAL, "some/model", PLAN)
    front = card.split("---\n")[1].splitlines()
    assert front == [
        "base_model: some/model", "library_name: transformers", "tags:", "- chat", "- pruned", "- tinysleb",
        "license: apache-2.0", "language: [en]",
    ]  # fmt: skip
    assert "# some/model, 4 of 6 blocks" in card
    assert "removed the blocks 3, 1" in card
    assert "(wiki.txt): 2.72 before, 7.39 after" in card
    assert card.endswith("# The card of some/model\n\n# Tiny\n\nA model.\n")


def test_a_card_says_what_healing_did() -> None:
    losses = {"original": 1.0, "shortened": 2.0, "healed": 1.5}
    older = {"sources": [{"source": "wiki.txt", **losses}]}
    card = model_card("", "m", PLAN | {"healing": older})
    assert "| wiki.txt | 2.72 | 7.39 | 4.48 |" in card
    assert "closed form (healing). Nothing was trained" in card
    newer = {"sources": [{"source": "self", "original": 1.0, "shortened": 2.0, "healed": 1.5}], **PROVENANCE}
    card = model_card("", "m", PLAN | {"healing": newer})
    assert "| self | 2.72 | 7.39 | 4.48 |" in card
    tokens = "(healing) on 32768 tokens, 16384 of them sampled from the model itself"
    assert f"{tokens}, computed in bfloat16 on cuda." in card
    none_sampled = newer | {"self_tokens": 0}
    assert "(healing) on 32768 tokens, computed" in model_card("", "m", PLAN | {"healing": none_sampled})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "chosen by SLEB (arXiv 2402.09025)."),
        ({"metric": "cosine"}, "chosen by the metric cosine."),
        ({"metric": None}, "chosen by hand or by another program."),
        (
            {"search": "healed", "chosen": "run"},
            "chosen as the run of neighbouring blocks that heals best, better than those chosen by SLEB",
        ),
        (
            {"search": "healed", "chosen": "sleb"},
            "chosen by SLEB (arXiv 2402.09025); after healing, no run of neighbouring blocks did better.",
        ),
    ],
)
def test_a_card_says_how_the_blocks_were_chosen(changes: dict[str, Any], said: str) -> None:
    settings = {"text": "wiki.txt", "metric": "perplexity"} | changes
    assert f"(counted from 0, in this order), {said}" in model_card("", "m", PLAN | {"settings": settings})


def front(card: str) -> dict[str, Any]:
    """The front matter as PyYAML reads it."""
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("[]", []), ("", []), ('["a, b"]', ["a, b"]), ("[a, b]", ["a", "b"]), ("one", ["one"]),
        ("\n- a\n- 'no'", ["a", "no"]), ("{a: b}", []), ("\n  - [a]\n  - b", ["b"]),
    ],
)  # fmt: skip
def test_tags_of_every_form_are_kept(written: str, tags: list[str]) -> None:
    card = model_card(f"---\nlicense: mit\ntags: {written}\n---\ntext", "m", PLAN)
    assert front(card)["tags"] == [*tags, "tinysleb", "pruned"]
    assert front(card)["license"] == "mit"


def test_fields_come_out_as_they_went_in() -> None:
    """A code for Norwegian is not a truth value, and a version is not a number."""
    lines = (
        "language:\n- no\nversion: 1.10\ndate: 2024-01-02\nempty:\nwidget:\n- text: 'it: is'\nname: Ünïcode\n"
    )
    card = model_card(f"---\r\n{lines}---\r\nbody", "m", PLAN)
    assert card.split("---\n")[1].endswith(lines)
    long = "x " * 500
    assert front(model_card(f"---\ndescription: {long}\n---\n", "m", PLAN))["description"] == long.strip()


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
HOSTILE = {
    "aliases": f"---\n{BOMB}---\ntext",
    "large": "---\n" + "k: v\n" * 20_000 + "---\ntext",
    "nested": "---\na: " + "[" * 20_000 + "\n---\ntext",
    "python": "---\na: !!python/object/apply:os.system [id]\n---\ntext",
    "wrong tags": "---\na: !!bool x\nb: !!timestamp x\n---\ntext",
    "not an object": "---\n- a\n- b\n---\ntext",
    "unclosed": "---\n" + "a" * 2000 + ": [\n",
    "number": "---\na: " + "9" * 9000 + "\n---\ntext",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_front_matter_that_cannot_be_read_stays_text(name: str) -> None:
    card = model_card(HOSTILE[name], "some/model", PLAN)
    assert list(front(card)) == ["base_model", "library_name", "tags"]
    assert card.endswith(HOSTILE[name].strip() + "\n")
    with pytest.raises(ValueError, match=r"."):
        card_values(HOSTILE[name])


def test_cards_in_other_encodings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes("---\nauthor: Jürgen\n---\n“quoted”".encode("cp1252"))
    assert read_card(path) == "---\nauthor: Jürgen\n---\n“quoted”"
    path.write_text("\ufeff---\nlicense: mit\n---\n", encoding="utf-8")
    assert front(model_card(read_card(path), "m", PLAN))["license"] == "mit"


def test_a_damaged_card_is_left_out_of_a_gguf(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    (folder / "README.md").write_text(HOSTILE["aliases"])
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert result.exit_code == 0
    assert "its front matter is not used: it has aliases" in result.stderr
    assert run("export", folder, "--hf", "copy").exit_code == 0


def test_a_card_from_the_metadata_of_a_gguf() -> None:
    values: dict[str, object] = {
        "general.license": "apache-2.0", "general.languages": ["en"], "general.tags": ["chat", "a: b"],
        "general.base_model.0.repo_url": "https://host/some/model", "general.name": "Tiny",
    }  # fmt: skip
    fields = "license: apache-2.0\nlanguage:\n- en\ntags:\n- chat\n- 'a: b'\nbase_model: some/model\n"
    assert card_from_metadata(values, {}) == f"---\n{fields}---\n"
    assert card_from_metadata({"general.name": "Tiny"}, {}) == ""
    card = card_from_metadata(values, {"blocks": 6, "removed": [3]})
    assert "base_model: some/model" in card
    assert "license: apache-2.0" in card
    assert "removed the blocks 3 (" in card


def test_a_card_from_nothing() -> None:
    card = model_card("", "m", {"blocks": 6, "removed": [3]})
    assert card.startswith(
        "---\nbase_model: m\nlibrary_name: transformers\ntags:\n- tinysleb\n- pruned\n---\n"
    )
    assert "Perplexity" not in card
    assert "SLEB" not in card
    assert model_card("---\ntags: [a, b]\n---\n", "m", PLAN).count("\n- a\n- b\n- tinysleb\n- pruned\n") == 1


def test_a_shortened_folder_has_its_card(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    (folder / "README.md").write_text(ORIGINAL)
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [2]}))
    assert run("prune", folder, "--plan", "p.json", "-o", "cut").exit_code == 0
    assert Path("cut/README.md").read_text().startswith("---\nbase_model:\n- somebody/else\n")
    assert run("export", folder, "--hf", "whole").exit_code == 0
    assert Path("whole/README.md").read_text() == ORIGINAL
    assert not Path("whole/plan.json").exists()


def test_chat_templates_in_files_of_their_own_come_along(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert run("export", folder, "--hf", "copy").exit_code == 0
    assert Path("copy/additional_chat_templates/tool_use.jinja").read_text() == "{{ tools }}"
