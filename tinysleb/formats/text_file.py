"""Text files in UTF-8, read in parts: whole ones can be larger than memory.

Line ends become `\\n`, as Python reads text files; nothing else is changed, a byte order mark included.
Single bytes that are not UTF-8 become what BROKEN finds (PEP 383); where there are many, the text is in
another encoding, and refused.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from tinysleb.errors import TinyslebError
from tinysleb.formats.wrong_file import BEGINNING, refuse_lfs_pointer

PART_BYTES = 1 << 19
BROKEN = re.compile("[\udc80-\udcff]")
"""A byte of a text that is not UTF-8."""
FEW_BROKEN, BROKEN_PART = 3, 0.01
"""So many of them, or such a part of the bytes, are damage to a text that is in UTF-8."""
OTHER_FORMATS = (
    (b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a ZIP archive"), (b"\x1f\x8b", "a gzip archive"), (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"), (b"\x28\xb5\x2f\xfd", "a zstd archive"),
)  # fmt: skip
OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip


def text_size(path: Path) -> int:
    """The bytes of a text file, 0 for a pipe. Raises TinyslebError if it is not there."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error


def text_parts(path: Path, size: int = PART_BYTES) -> Iterator[str]:
    """A text file in parts of about `size` bytes. Raises TinyslebError if it is absent or is not text."""
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8")("surrogateescape"), translate=True
    )
    try:
        with path.open("rb") as file:
            read = 0
            while data := file.read(size):
                if not read:
                    _refuse_other_text(path, data[:BEGINNING])
                yield _decoded(decoder, data, path, read)
                read += len(data)
            yield _decoded(decoder, b"", path, read)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error


def text_between(path: Path, start: int, stop: int) -> str:
    """What lies between two bytes of a text file: whole lines, or else words, or else characters.

    Raises TinyslebError as `text_parts` does.
    """
    try:
        with path.open("rb") as file:
            _refuse_other_text(path, file.read(BEGINNING))
            file.seek(start)
            data, more = file.read(stop - start), file.read(1)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    skipped = _first_whole(data) if start else 0
    kept = data[skipped : _last_whole(data) if more else len(data)]
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = _decoded(decoder, kept, path, start + skipped, final=False)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _first_whole(data: bytes) -> int:
    """Where a line, a word or a character begins, in the first half of some bytes."""
    for end in (b"\n", b" "):
        if place := data.find(end, 0, len(data) // 2) + 1:
            return place
    return _first_character(data)


def _first_character(data: bytes) -> int:
    """Where a character begins: the file was cut anywhere."""
    return next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def _last_whole(data: bytes) -> int:
    """Where the last line or word ends, in the second half of some bytes; their number if there is none."""
    places = (data.rfind(end, len(data) // 2) for end in (b"\n", b" "))
    return next((place for place in places if place >= 0), len(data))


def _decoded(
    decoder: io.IncrementalNewlineDecoder | codecs.IncrementalDecoder,
    data: bytes,
    path: Path,
    begin: int,
    final: bool | None = None,
) -> str:
    """The next bytes of a file, from number `begin` on, as text. No more bytes are the last."""
    text = decoder.decode(data, final=not data if final is None else final)
    if len(BROKEN.findall(text)) > max(FEW_BROKEN, BROKEN_PART * len(data)):
        whole = data[(start := _first_character(data)) :]
        try:
            whole.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TinyslebError(
                f"{path} is not UTF-8 text: byte {whole[error.start]:#04x} at {begin + start + error.start}",
                "convert it to UTF-8 first",
            ) from error
    return text


def _refuse_other_text(path: Path, beginning: bytes) -> None:
    refuse_lfs_pointer(path, beginning)
    for mark, name in OTHER_ENCODINGS:
        if beginning.startswith(mark):
            raise TinyslebError(
                f"{path} is {name} text, not UTF-8",
                f"convert it first: iconv -f {name} -t UTF-8 {path.name}",
            )
    for number, what in OTHER_FORMATS:
        if beginning.startswith(number):
            raise TinyslebError(f"{path} is {what}, not text", "take the text out of it first")
    if 4 * beginning.count(0) > len(beginning):
        raise TinyslebError(
            f"{path} is not text: {beginning.count(0)} of its first {len(beginning)} bytes are zeros",
            "if it is UTF-16, convert it first: iconv -f UTF-16LE -t UTF-8",
        )
