"""What the machine ran out of, in the words of an error: wherever it happens, the program is not at fault."""

from __future__ import annotations

import errno
import os
import sys

from tinysleb.errors import TinyslebError, shown

OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""In what torch raises, which is no MemoryError."""
OF_THREADS = ("can't start new thread", "Resource temporarily unavailable")


def what_ran_out(error: Exception) -> TinyslebError | None:
    """The error to print in place of one of the system's; None if it is none of these."""
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in OF_MEMORY)
    ):
        return TinyslebError(
            "there is not enough memory", "set --memory lower where a command has it, or close other programs"
        )
    if isinstance(error, RuntimeError) and any(words in text for words in OF_THREADS):
        return TinyslebError(
            "no more threads can be started", "set --threads 1, or raise the limit (ulimit -u)"
        )
    if isinstance(error, OSError) and error.errno != errno.EPIPE:  # that is click's: the reader has gone
        reason = error.strerror or shown(text)
        if error.filename is None:
            _give_up_stdout()
            return TinyslebError(f"cannot read or write: {reason}")
        return TinyslebError(f"cannot use {os.fsdecode(error.filename)}: {reason}")
    return None


def _give_up_stdout() -> None:
    """What it could not write it would try to write again at the end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
