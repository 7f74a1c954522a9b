"""`config.json` as people have it."""

from __future__ import annotations

from pathlib import Path

from real_files.conditions import Condition, check, edited, refused, rows


@rows(
    Condition(
        "an activation that is not SwiGLU's",
        edited(hidden_act="gelu"),
        "transformers computes gelu; its files are rare in these families",
        refused("config.json", "hidden_act", "gelu"),
    ),
)
def test_configs(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
