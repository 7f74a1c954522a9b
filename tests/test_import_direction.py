"""Imports point one way: from the command line down to the errors, never back."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = (
    "errors",
    "input_file files architectures config_keys pre_tokenizers sentencepiece_model settings streams cholesky",
    "rotary safetensors_file plan",
    "config",
    "gguf_file memory report",
    "gguf_names weights",
    "huggingface_source gguf_source fingerprint device distributed loading states",
    "model stopping",
    "healed ridge",
    "open_model tokenizer sweep sampling rounding",
    "inspect calibration search",
    "evaluate heal healing_text",
    "metrics estimate healing",
    "pruning healed_search",
    "cli",
    "__main__",
)
"""Each module may import only from the lines above its own (or the package itself)."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinysleb"):
            found.add((node.module or "").removeprefix("tinysleb").lstrip("."))
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("tinysleb.") for a in node.names if a.name.startswith("tinysleb.")}
    return found - {""}


def test_modules_import_only_what_lies_below() -> None:
    level = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
    for path in (ROOT / "tinysleb").glob("*.py"):
        if path.stem == "__init__":
            continue
        for name in imports(path):
            if name.startswith("export"):
                assert path.stem == "cli", f"{path.name} imports {name}"
            else:
                assert level[name] < level[path.stem], f"{path.name} imports {name}"


def test_writers_know_nothing_of_the_search() -> None:
    for path in (ROOT / "export").glob("*.py"):
        assert not imports(path) & {"search", "sweep", "plan", "heal", "cli"}, path.name
