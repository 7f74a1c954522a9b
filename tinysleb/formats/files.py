"""Reading small files with clear errors, and writing outputs so that nothing is half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tinysleb.errors import TinyslebError
from tinysleb.formats.json_objects import parse_json_object
from tinysleb.formats.model_files import foreign_file
from tinysleb.formats.wrong_file import wrong_file

LARGEST_JSON_BYTES = 256 * 1024 * 1024
PART, OLD = "part", "old"
"""Endings of what is being written, and of what it replaces."""
LONGEST_NAME_BYTES = 200
"""Of an output. File systems take 255; temporary files, plans and unfinished searches have longer names."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises TinyslebError if it is absent, too large or not an object."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size or LARGEST_JSON_BYTES  # a device has none
            text = file.read(min(size, LARGEST_JSON_BYTES) + 1)
        if len(text) > LARGEST_JSON_BYTES:
            raise TinyslebError(f"{path} is too large for a JSON file (over {LARGEST_JSON_BYTES} bytes)")
        return parse_json_object(text)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise wrong_file(path) or TinyslebError(f"{path} is not valid JSON: {error}") from error


def valid_text(name: str) -> str:
    """A file's name as text that can be stored: bytes of it that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises TinyslebError if it is absent or is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TinyslebError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}",
            "convert it to UTF-8 first",
        ) from error


def refuse_existing(path: Path, force: bool, *inputs: Path) -> None:
    """Refuse, before any slow work, an output that may not be written.

    With `force`, an existing file is replaced, and a folder that holds a model and nothing else. Whatever
    holds one of the `inputs` is never replaced. Raises TinyslebError.
    """
    _check_name(path)
    try:
        _check_existing(path, force, inputs)
        if not path.parent.is_dir():
            raise TinyslebError(f"the folder {path.parent} does not exist", "create it first")
    except OSError as error:
        raise TinyslebError(f"cannot write {path}: {error.strerror}", "choose another output") from error
    if not os.access(path.parent, os.W_OK):
        raise TinyslebError(f"the folder {path.parent} cannot be written to", "choose another output")


def _check_existing(path: Path, force: bool, inputs: Sequence[Path]) -> None:
    """Refuse to replace what may not be replaced."""
    for source in inputs:
        if path.exists() and source.exists() and _holds(path, source):
            raise TinyslebError(
                f"{path} is the input itself, or part of it, or holds it", "choose another output"
            )
    if (path.exists() or path.is_symlink()) and not force:
        raise TinyslebError(f"{path} exists already", "choose another output, or replace it with --force")
    if path.is_dir():
        _check_replaceable(path)
    elif path.exists() and not path.is_file():
        raise TinyslebError(f"{path} is neither a file nor a folder", "choose another output")


def _check_name(path: Path) -> None:
    """Refuse a name that could not be written, or not with what is put before and behind it meanwhile."""
    try:
        length = max((len(part.encode("utf-8")) for part in path.parts), default=0)
    except UnicodeEncodeError as error:
        raise TinyslebError(f"the output's name {str(path)!a} is not UTF-8", "choose another") from error
    if path.name in ("", "..") or "\0" in str(path):
        raise TinyslebError(f"{str(path)!r} is not a name that can be written to", "choose another output")
    if length > LONGEST_NAME_BYTES:
        raise TinyslebError(
            f"the output's name {path.name[:40]!r}… has {length} bytes",
            f"choose one of at most {LONGEST_NAME_BYTES}",
        )


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is not a model's, or holds something else as well."""
    if folder.is_symlink():
        raise TinyslebError(f"{folder} is a link to a folder, which is not replaced", "choose another output")
    foreign = foreign_file(folder)
    if (folder / "config.json").is_file() and foreign is not None:
        raise TinyslebError(
            f"{folder} is not replaced, since {foreign.relative_to(folder)} in it is not a model's file",
            "choose another output, or move that file away",
        )
    if foreign is not None or not any(folder.glob("*.safetensors")):
        raise TinyslebError(
            f"{folder} is a folder that holds no model, and is not replaced", "choose another output"
        )


def refuse_full_disk(path: Path, needed: int) -> None:
    """Refuse, before any slow work, an output of `needed` bytes that the disk has no space for."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise TinyslebError(
            f"no space left on the disk for {path}: it needs {needed} bytes, {free} are free",
            "free some space, or choose another place",
        )


def _holds(path: Path, source: Path) -> bool:
    """Whether replacing `path` would touch `source`: itself, what it is in, its files, its other parts."""
    output, resolved = path.resolve(), source.resolve()
    inside = source.is_dir() and resolved in output.parents and output.suffix != ".gguf"
    part = re.compile(r"-\d{5}-of-\d{5}(\.\w+)$")
    sibling = part.search(resolved.name) and part.sub(r"\1", str(output)) == part.sub(r"\1", str(resolved))
    return inside or bool(sibling) or output in (resolved, *resolved.parents)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is flushed to disk and renamed to `path`."""
    with _temporary_name(path) as temporary:
        temporary.touch()
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is needed until that is written; it is deleted at the end."""
    with _temporary_name(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; on success its files are flushed and it becomes `path`."""
    with temporary_folder(path) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
            elif file.is_dir():
                _flush_folder(file)
        _flush_folder(temporary)
        if path.exists():
            _check_replaceable(path)  # again: files may have come since
            with _temporary_name(path, OLD) as old:
                path.rename(old)
                try:
                    temporary.rename(path)
                except BaseException:
                    old.rename(path)  # or the old output would be deleted with nothing in its place
                    raise
        else:
            temporary.rename(path)
        _flush_folder(path.parent)


def clear_temporaries(path: Path) -> None:
    """Delete what processes that ended have left beside `path`, and put back what one of them had moved away
    and not replaced yet; for who knows that none is writing it."""
    named = re.compile(re.escape(f".{path.name}.") + rf"[0-9a-f]{{8}}\.({PART}|{OLD})")
    for entry in path.parent.iterdir():
        if found := named.fullmatch(entry.name):
            with suppress(OSError):  # another user's, for instance
                if found[1] == OLD and not path.exists():
                    entry.rename(path)
                else:
                    _delete(entry)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, written whole or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _temporary_name(path: Path, ending: str = PART) -> Iterator[Path]:
    """A free name beside `path`; whatever stands there at the end is deleted."""
    try:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")
        try:
            yield temporary
        finally:
            _delete(temporary)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TinyslebError(
                f"no space left on the disk while writing {path}",
                "nothing was written; free some space or choose another place",
            ) from error
        raise TinyslebError(f"cannot write {path}: {error.strerror or error}") from error


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """So that a name is as safe as what it names. Some systems and file systems cannot, and need not."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
