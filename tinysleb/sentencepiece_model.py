"""Just enough protocol buffers to rebuild a SentencePiece model from a vocabulary.

A GGUF carries the pieces, scores and types of a SentencePiece BPE model; with a trainer and a normaliser
spec around them the sentencepiece library encodes as it did with the original file.
Field numbers: `sentencepiece_model.proto` of the sentencepiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_VARINT, _BYTES, _FLOAT = 0, 2, 5
_BPE = 2
_BYTE_PIECE = 6


def sentencepiece_bpe_model(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, dummy_prefix: bool
) -> bytes:
    """A serialised model of BPE kind. `types` are SentencePiece's (a GGUF uses the same numbers).

    `dummy_prefix`: whether a space is put before the text. Bytes fall back if there are byte pieces.
    """
    body = b"".join(
        _field(1, _string(1, piece) + _float(2, score) + _integer(3, kind))
        for piece, score, kind in zip(pieces, scores, types, strict=True)
    )
    trainer = _integer(3, _BPE) + _integer(4, len(pieces)) + _integer(35, int(_BYTE_PIECE in types))
    normalizer = _string(1, "identity") + _integer(3, int(dummy_prefix)) + _integer(4, 0) + _integer(5, 1)
    return body + _field(2, trainer) + _field(3, normalizer)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _field(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _string(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _integer(field: int, number: int) -> bytes:
    return _tag(field, _VARINT) + _varint(number)


def _float(field: int, number: float) -> bytes:
    return _tag(field, _FLOAT) + struct.pack("<f", number)
