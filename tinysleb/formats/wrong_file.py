"""What a file is that is not what its name says, as far as its first bytes tell, for errors to say.

Downloads leave pointers, pages and messages under the names of weights; formats are taken for one another.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from tinysleb.errors import TinyslebError, shown

BEGINNING = 1024
NOTICE_BYTES = range(12, 4096)
"""Of a text that may be a server's answer in place of a file."""
NO_TEXTS = (".safetensors", ".gguf", ".json", ".model")
"""Endings of files that are never plain text."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
FETCH_AGAIN = "fetch the file again"
TAKE_ANOTHER = "take the safetensors version of the model, or a GGUF of it"
PICKLED = "holds pickled weights, which can run code when loaded and are not read"
UNPACK = "unpack it, and give what is in it"
MAGIC_NUMBERS = (
    (b"GGUF", "is a GGUF file", "give it a name that ends in .gguf"),
    (b"PK\x03\x04", PICKLED, TAKE_ANOTHER),
    (b"\x80\x02", PICKLED, TAKE_ANOTHER),
    (b"\x80\x03", PICKLED, TAKE_ANOTHER),
    (b"\x80\x04", PICKLED, TAKE_ANOTHER),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as TensorFlow has them", TAKE_ANOTHER),
    (b"lmgg", "is a GGML file, older than GGUF", "take a GGUF of the model"),
    (b"fmgg", "is a GGML file, older than GGUF", "take a GGUF of the model"),
    (b"tjgg", "is a GGML file, older than GGUF", "take a GGUF of the model"),
    (b"algg", "is a LoRA adapter, older than GGUF", "take a GGUF of the merged model"),
    (b"\x1f\x8b", "is a gzip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (b"Rar!", "is a RAR archive", UNPACK),
    (b"\xfd7zXZ\x00", "is an xz archive", UNPACK),
    (b"BZh", "is a bzip2 archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive", UNPACK),
)
"""How formats begin that are taken for others, what they are, and what to do."""
SUFFIXES = {
    **dict.fromkeys((".bin", ".pth", ".pt", ".ckpt", ".pkl"), PICKLED),
    ".onnx": "is an ONNX file",
    ".npz": "is an archive of NumPy arrays, as MLX has them",
    ".h5": "is an HDF5 file, as TensorFlow has them",
    ".msgpack": "is a file of Flax",
    ".tflite": "is a file of TensorFlow Lite",
    ".engine": "is a file of TensorRT",
}
"""What files with other endings are; few of them begin with a number of their own."""


def wrong_file(path: Path) -> TinyslebError | None:
    """The error for a file that was expected to be something else; None if nothing is known about it."""
    try:
        with path.open("rb") as file:
            beginning, size = file.read(BEGINNING), path.stat().st_size
    except OSError:
        return None
    return (
        _placeholder(path, beginning, size)
        or _other_format(path, beginning)
        or _notice(path, beginning, size)
    )


def refuse_lfs_pointer(path: Path, beginning: bytes) -> None:
    """Raise TinyslebError if a file begins as what Git LFS leaves in place of a large one."""
    if beginning.startswith(LFS_POINTER):
        size = re.search(rb"\nsize (\d{1,19})\b", beginning)
        stands_for = f"the {size[1].decode()} bytes" if size else "the file"
        raise TinyslebError(
            f"{path} is a Git LFS pointer, not {stands_for} that it stands for",
            f"run `git lfs pull` in {path.parent}, or {FETCH_AGAIN}",
        )


def check_no_pointer(path: Path) -> None:
    """Raise TinyslebError if a file that is there is what Git LFS leaves in place of a large one."""
    with suppress(OSError), path.open("rb") as file:
        refuse_lfs_pointer(path, file.read(BEGINNING))


def _placeholder(path: Path, beginning: bytes, size: int) -> TinyslebError | None:
    try:
        refuse_lfs_pointer(path, beginning)
    except TinyslebError as error:
        return error
    if not beginning:
        return TinyslebError(f"{path} is empty", FETCH_AGAIN)
    if not any(beginning):
        return TinyslebError(f"{path} begins with zeros: its download did not finish", FETCH_AGAIN)
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        return TinyslebError(
            f"{path} is a web page of {size} bytes, saved under that name",
            "log in where it comes from, accept the model's terms, and fetch the file itself",
        )
    return None


def _other_format(path: Path, beginning: bytes) -> TinyslebError | None:
    for number, what, hint in MAGIC_NUMBERS:
        if beginning.startswith(number):
            return TinyslebError(f"{path} {what}", hint)
    if path.suffix != ".safetensors" and beginning[8:10] == b'{"' and not any(beginning[4:8]):
        return TinyslebError(
            f"{path} is a safetensors file",
            "give it a name that ends in .safetensors, and put its config.json beside it",
        )
    if path.suffix in SUFFIXES:
        return TinyslebError(f"{path} {SUFFIXES[path.suffix]}", TAKE_ANOTHER)
    return None


def _notice(path: Path, beginning: bytes, size: int) -> TinyslebError | None:
    """A few words that a server sent instead of the file; JSON is looked at by whoever reads it."""
    if size not in NOTICE_BYTES or path.suffix not in NO_TEXTS:
        return None
    if path.suffix == ".json" and beginning.lstrip().startswith(b"{"):
        return None
    text = beginning.decode("utf-8", "replace").strip()
    if not text or not all(character.isprintable() or character.isspace() for character in text):
        return None
    if "�" in text[:-1]:
        return None
    return TinyslebError(
        f"{path} is not the file that its name says, but a text of {size} bytes: {shown(text)}",
        f"if that is a server's answer, do what it says, and {FETCH_AGAIN}",
    )
