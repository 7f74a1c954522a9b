"""Text that every Python brings along: its standard library's docstrings, in English prose, and its code.

About a megabyte of the one and seven of the other. Where the library's sources are not there, or lie in an
archive, there is none.
"""

from __future__ import annotations

import ast
import os
import random
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from tinysleb.text.tokenizer import Tokenizer
from tinysleb.text.windows import cut_windows

LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data",
    "turtledemo", "ensurepip", "__pycache__", "__phello__",
}  # fmt: skip
"""Folders of tests, tables, and what is not the standard library's."""
HELD_BACK_FILES = 8
"""One file in so many is never fitted."""
LEAST_DOCSTRING = 200
"""Characters; shorter ones are formulas."""
MORE = 64
"""Windows read beyond those that are taken, so that a few come from many files."""
Kind = Callable[[Path], str]


def library_windows(
    tokenizer: Tokenizer, kind: Kind, length: int, count: int, held: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Windows of the standard library: at most `count` `[n, length]`, and at most `held` of other files.

    `kind` makes a text of a file: `docstrings` or `code`. The seed chooses files and windows.
    """
    files = library_files()
    held_back = files[::HELD_BACK_FILES]
    fitted = [path for path in files if path not in set(held_back)]
    return (
        _choose_windows(tokenizer, kind, fitted, length, count, seed),
        _choose_windows(tokenizer, kind, held_back, length, held, seed),
    )


def library_files() -> list[Path]:
    """The standard library's modules, by name."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]  # and are not walked into
        found += [Path(inside, name) for name in names if name.endswith(".py")]
    return sorted(found)


def docstrings(path: Path) -> str:
    """A module's longer docstrings, without indentation, in the order in which they stand there."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in found if len(text) >= LEAST_DOCSTRING)


def code(path: Path) -> str:
    """A module as it is."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _choose_windows(
    tokenizer: Tokenizer, kind: Kind, files: Sequence[Path], length: int, count: int, seed: int
) -> Tensor:
    generator = random.Random(seed)
    tokens: list[int] = []
    for path in generator.sample(files, len(files)):
        if len(tokens) >= (count + MORE) * length:
            break
        tokens += tokenizer.encode(kind(path) + "\n\n")
    windows = cut_windows(tokens, length)
    order = generator.sample(range(len(windows)), len(windows))
    return windows[order[:count]]
