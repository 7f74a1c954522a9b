"""An input file; every later read checks that it is still the file whose header was read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError


@dataclass(frozen=True)
class InputFile:
    """A file with its size in bytes, the time of its last change in nanoseconds, and which file it is."""

    path: Path
    size: int
    changed: int
    device: int
    inode: int

    def read(self, offset: int, buffer: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises TinyslebError if the file cannot be read, or has changed.
        """
        try:
            with FileIO(self.path, "rb") as file:
                file.seek(offset)
                read_whole(file, buffer)
                self.check_unchanged(file)
        except OSError as error:
            raise TinyslebError(f"cannot read {self.path}: {error.strerror}") from error

    def check_unchanged(self, file: FileIO) -> None:
        """Raise TinyslebError if the open `file` is not the one whose header was read."""
        if input_file(self.path, file.fileno()) != self:
            raise TinyslebError(
                f"{self.path} changed while it was read", "wait until it is complete, and start again"
            )


def input_file(path: Path, descriptor: int) -> InputFile:
    """The state of an open file."""
    status = os.fstat(descriptor)
    return InputFile(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def read_parts(file: FileIO, size: int, at_once: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The next `size` bytes of an open file, in parts of `at_once` through one buffer: taking memory anew for
    each part costs as much as copying it. Ends early where the file does.
    """
    buffer = np.empty(min(at_once, size), dtype=np.uint8)
    for left in range(size, 0, -at_once):
        if not read_whole(file, buffer[:left]):
            return
        yield buffer[:left]


def read_whole(file: FileIO, buffer: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
    """Fill `buffer` from where an open file stands; whether it had as many bytes."""
    view, filled = memoryview(buffer.data), 0
    while filled < len(view) and (count := file.readinto(view[filled:])):
        filled += count
    return filled == len(view)
