"""The bytes of a GGUF's header: metadata and tensor infos, as `gguf_file.py` reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from gguf.constants import GGMLQuantizationType, GGUFValueType

from tinysleb.formats.gguf_file import SCALAR_FORMATS, VERSIONS, GgufValue, padded, stored_bytes


def pack_gguf_header(
    metadata: Mapping[str, GgufValue],
    tensors: Mapping[str, tuple[tuple[int, ...], GGMLQuantizationType]],
    alignment: int,
) -> bytes:
    """A header for `tensors` (name → shape, rows first, and type), padded to where the data begins.

    The tensors' data must follow in the same order, each padded to `alignment`.
    """
    parts = [struct.pack("<4sIQQ", b"GGUF", VERSIONS[-1], len(tensors), len(metadata))]
    for key, item in metadata.items():
        parts += [_pack_string(key), struct.pack("<I", item.type), pack_value(item)]
    offset = 0
    for name, (shape, type_) in tensors.items():
        parts.append(_pack_string(name))
        parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        parts.append(struct.pack("<IQ", type_, offset))
        offset += padded(stored_bytes(shape, type_), alignment)
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def _pack_string(text: str) -> bytes:
    data = text.encode("utf-8")
    return len(data).to_bytes(8, "little") + data


def pack_value(item: GgufValue) -> bytes:
    """A metadata value as stored, without its type."""
    if item.type == GGUFValueType.STRING:
        return _pack_string(item.value)
    if item.type != GGUFValueType.ARRAY or item.item_type is None:
        return struct.pack("<" + SCALAR_FORMATS[item.type], item.value)
    prefix = struct.pack("<IQ", item.item_type, len(item.value))
    if item.item_type == GGUFValueType.STRING:
        return prefix + b"".join(map(_pack_string, item.value))
    return prefix + struct.pack(f"<{len(item.value)}{SCALAR_FORMATS[item.item_type]}", *item.value)
