"""Imports point one way: from the command line down to the errors, never back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = "errors formats sublayers plan checkpoint text model compute search heal measure export commands cli"
"""The architecture: a room imports only from those to its left, and from itself."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below `tinysleb`; packages by the name of their folder."""
    paths = {path.relative_to(ROOT / "tinysleb"): path for path in (ROOT / "tinysleb").rglob("*.py")}
    paths |= {path.relative_to(ROOT): path for path in (ROOT / "export").rglob("*.py")}
    names = {
        ".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in paths.items()
    }
    return {name: path for name, path in names.items() if name not in ("__init__", "__main__")}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of tinysleb that a file imports, in whichever form it says so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} imports relatively"
        yield from (
            name.removeprefix("tinysleb.") for name in names if name.removeprefix("tinysleb.") in known
        )


def test_rooms_import_only_what_lies_below() -> None:
    known, order = modules(), ROOMS.split()
    assert {name.partition(".")[0] for name in known} == set(order)
    for name, path in known.items():
        room = name.partition(".")[0]
        for other in imported(path, known):
            below = order.index(other.partition(".")[0]) <= order.index(room)
            assert below, f"{name} imports {other}"


def test_no_module_imports_itself_by_a_detour() -> None:
    known = modules()
    TopologicalSorter({name: set(imported(path, known)) for name, path in known.items()}).prepare()
