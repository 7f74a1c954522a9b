"""The model card, as text and in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from reference import make_llama
from tinysleb.export.model_card import card_from_metadata, model_card

Run = Callable[..., Result]
PLAN = {
    "blocks": 6, "removed": [3, 1], "loss": 1.0, "settings": {"text": "wiki.txt", "metric": "perplexity"},
    "rounds": [{"loss": 1.5}, {"loss": 2.0}],
}  # fmt: skip
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
    assert "left out the blocks 3, 1" in card
    assert "(wiki.txt): 2.72 before, 7.39 after" in card
    assert card.endswith("# The card of some/model\n\n# Tiny\n\nA model.\n")


def test_a_card_says_what_healing_did() -> None:
    losses = {"original": 1.0, "shortened": 2.0, "healed": 1.5}
    card = model_card("", "m", PLAN | {"healing": {"sources": [{"source": "wiki.txt", **losses}]}})
    assert "| wiki.txt | 2.72 | 7.39 | 4.48 |" in card


def test_a_card_from_the_metadata_of_a_gguf() -> None:
    values: dict[str, object] = {
        "general.license": "apache-2.0", "general.languages": ["en"], "general.tags": ["chat", "a: b"],
        "general.base_model.0.repo_url": "https://host/some/model", "general.name": "Tiny",
    }  # fmt: skip
    fields = 'license: apache-2.0\nlanguage:\n- en\ntags:\n- chat\n- "a: b"\nbase_model: some/model\n'
    assert card_from_metadata(values, {}) == f"---\n{fields}---\n"
    assert card_from_metadata({"general.name": "Tiny"}, {}) == ""
    card = card_from_metadata(values, {"blocks": 6, "removed": [3]})
    assert "base_model: some/model" in card
    assert "license: apache-2.0" in card
    assert "left out the blocks 3 (" in card


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
