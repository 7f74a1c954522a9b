"""The one exception for problems that the user can fix. `commands/console.py` turns it into text, once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

LONGEST_SHOWN = 80
"""Characters of a value that messages show."""


class TinyslebError(Exception):
    """A problem the user can fix: what is wrong (file, field, value found) and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def one_line(self) -> str:
        """Message and hint in one line, for a problem that is reported but does not end the command."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


def shown(value: object) -> str:
    """A value for a message, not too long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def listed(names: Sequence[str], most: int) -> str:
    """Names for a message, no more than `most` of them."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def pip_install(extra: str) -> str:
    """The command that installs what an extra needs beside the Python that runs.

    The packages are named, not the extra: tinysleb itself is on no index to take it from.
    """
    from importlib.metadata import requires  # as slow to import as click, and rarely needed

    marker = f'; extra == "{extra}"'
    packages = [line.removesuffix(marker) for line in requires("tinysleb") or () if line.endswith(marker)]
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    quoted = " ".join(f'"{package}"' for package in packages)
    return f"{python} -m pip install {quoted}"
