"""llama.cpp's file of an original's log-probabilities (`llama-perplexity --kl-divergence-base`).

It begins with `_logits_`, the length of a window (uint32), the size of the vocabulary and the number of
windows (int32), and the windows' tokens (int32). Then comes a row for each token from the middle of a window
on, but the last: a scale and a minimum (float32), and for each token that may follow a uint16 v, which stands
for the log-probability minimum + scale · v, and one more if the vocabulary is odd
(`tools/perplexity/perplexity.cpp`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import refuse_full_disk, replaced_file
from tinysleb.formats.input_file import InputFile, input_file
from tinysleb.formats.output_lock import sole_writer

MAGIC = b"_logits_"
HEADER = struct.Struct("<8sIii")
RANGE = 16
"""Log-probabilities further below the largest are stored as if they were so far below."""
STEPS = 65535

Tokens = np.ndarray[Any, np.dtype[np.int32]]
LogProbabilities = np.ndarray[Any, np.dtype[np.float32]]


def first_scored(length: int) -> int:
    """The first token of a window whose next one is predicted: what comes before has too little context."""
    return length // 2


@dataclass(frozen=True)
class LogitsFile:
    """A file whose header was read: its windows' `tokens`, int32 `[n, T]`, and its vocabulary's size."""

    file: InputFile
    vocabulary: int
    tokens: Tokens

    def rows(self, first: int, last: int) -> LogProbabilities:
        """Log-probabilities `[last - first, vocabulary]` of the scored tokens of all windows, by number.

        Raises TinyslebError if the file has changed, or a scale or minimum is not a finite number.
        """
        start = HEADER.size + self.tokens.nbytes
        size = _row_bytes(self.vocabulary)
        buffer = np.empty((last - first, size), dtype=np.uint8)
        self.file.read(start + first * size, buffer.reshape(-1))
        scales = buffer[:, :8].copy().view("<f4")
        if not np.isfinite(scales).all():
            raise TinyslebError(f"{self.file.path}: a scale in rows {first} … {last - 1} is not finite")
        values = buffer[:, 8:].copy().view("<u2")[:, : self.vocabulary]
        rows: LogProbabilities = scales[:, 1:] + scales[:, :1] * values.astype(np.float32)
        return rows


def read_logits_file(path: Path) -> LogitsFile:
    """Read the header. Raises TinyslebError if it is not such a file, or not of the size that it says."""
    try:
        with path.open("rb") as opened:
            header, file = opened.read(HEADER.size), input_file(path, opened.fileno())
            if len(header) < HEADER.size or not header.startswith(MAGIC):
                raise TinyslebError(f"{path} begins with {shown(header[:8])}, not with {MAGIC.decode()}")
            _, length, vocabulary, count = HEADER.unpack(header)
            _check_header(file, length, vocabulary, count)
            tokens = np.frombuffer(opened.read(4 * count * length), dtype="<i4").reshape(count, length)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        outside = tokens.min() if tokens.min() < 0 else tokens.max()
        raise TinyslebError(f"{path} holds token {outside}; its vocabulary has 0 … {vocabulary - 1}")
    return LogitsFile(file, vocabulary, tokens)


@contextmanager
def written_logits_file(
    path: Path, tokens: Tokens, vocabulary: int
) -> Iterator[Callable[[LogProbabilities], None]]:
    """Write such a file: call what this gives with log-probabilities `[m, vocabulary]`, row after row.

    Raises TinyslebError if the disk has no space for it; then and after an error nothing is written.
    """
    refuse_full_disk(path, _file_bytes(tokens.shape[1], vocabulary, len(tokens)))
    with sole_writer(path), replaced_file(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER.pack(MAGIC, tokens.shape[1], vocabulary, len(tokens)))
        file.write(tokens.astype("<i4").tobytes())
        yield lambda rows: _write_rows(file.write, rows)


def _write_rows(write: Callable[[bytes], object], rows: LogProbabilities) -> None:
    most = rows.max(1, keepdims=True)
    least = np.maximum(rows.min(1, keepdims=True), most - RANGE)
    scale = (most - least) / STEPS
    steps = np.rint((rows - least) / np.where(scale > 0, scale, 1)).clip(0, STEPS)
    packed = np.zeros((len(rows), _row_bytes(rows.shape[1]) // 2), dtype="<u2")
    packed[:, :4] = np.concatenate((scale, least), axis=1).astype("<f4").view("<u2")
    packed[:, 4 : 4 + rows.shape[1]] = steps
    write(packed.tobytes())


def _check_header(file: InputFile, length: int, vocabulary: int, count: int) -> None:
    """Before anything is allocated from it."""
    for name, value, least in (
        ("window length", length, 4),
        ("vocabulary", vocabulary, 1),
        ("number of windows", count, 1),
    ):
        if value < least:
            raise TinyslebError(f"{file.path}: its {name} is {value}")
    if file.size != (wanted := _file_bytes(length, vocabulary, count)):
        raise TinyslebError(
            f"{file.path} has {file.size} bytes; {count} windows of {length} tokens and a vocabulary of "
            f"{vocabulary} take {wanted}",
            "it may be incomplete: write it again",
        )


def _file_bytes(length: int, vocabulary: int, count: int) -> int:
    rows = length - 1 - first_scored(length)
    return HEADER.size + count * (4 * length + rows * _row_bytes(vocabulary))


def _row_bytes(vocabulary: int) -> int:
    return 2 * (4 + 2 * ((vocabulary + 1) // 2))
