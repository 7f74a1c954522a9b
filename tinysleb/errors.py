"""The one exception for problems that the user can fix. `cli.py` turns it into text, once."""

from __future__ import annotations


class TinyslebError(Exception):
    """A problem the user can fix: what is wrong (file, field, value found) and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def in_a_line(self) -> str:
        """The message with its hint, where the problem is only told of."""
        return f"{self.message} ({self.hint})" if self.hint else self.message
