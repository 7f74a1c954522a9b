"""Write one GGUF: the header, then each tensor's bytes in order, padded to the alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

from gguf.constants import GGUFValueType

from tinysleb import __version__
from tinysleb.export.gguf_check import TensorTypes, check_written
from tinysleb.formats.files import replaced_file
from tinysleb.formats.gguf_file import GgufValue, padded, stored_bytes
from tinysleb.formats.gguf_header import pack_gguf_header


def write_gguf_file(
    path: Path,
    metadata: Mapping[str, GgufValue],
    tensors: TensorTypes,
    alignment: int,
    write_tensor: Callable[[str, FileIO], None],
) -> None:
    """Write a GGUF whole or not at all. `write_tensor` puts one tensor's bytes into the file.

    The header is read back: TinyslebError is raised, and nothing is left, if llama.cpp would not load it.
    """
    with replaced_file(path) as temporary:
        write_container(temporary, metadata, tensors, alignment, write_tensor)
        check_written(temporary, path)


def write_container(
    path: Path,
    metadata: Mapping[str, GgufValue],
    tensors: TensorTypes,
    alignment: int,
    write_tensor: Callable[[str, FileIO], None],
) -> None:
    """As `write_gguf_file`, in place, and whatever the metadata say."""
    with FileIO(path, "wb") as file:
        write_all(file, pack_gguf_header(metadata, tensors, alignment))
        for name, (shape, type_) in tensors.items():
            size = stored_bytes(shape, type_)
            begin = file.tell()
            write_tensor(name, file)
            assert file.tell() == begin + size, name
            write_all(file, bytes(padded(size, alignment) - size))


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write every byte: an unbuffered file may take fewer at a time."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def tinysleb_metadata(plan_text: str | None) -> dict[str, GgufValue]:
    """What tinysleb adds to a GGUF: its version and, for a cut model, the plan as JSON."""
    values = {"tinysleb.version": __version__} | ({"tinysleb.plan": plan_text} if plan_text else {})
    return {key: GgufValue(value, GGUFValueType.STRING) for key, value in values.items()}
