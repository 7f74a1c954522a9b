"""Just enough protocol buffers to rebuild a SentencePiece model from a vocabulary, and to ask for its kind.

A GGUF carries the pieces, scores and types of a SentencePiece BPE model; with a trainer and a normaliser
spec around them the sentencepiece library encodes as it did with the original file. The message classes that
come with that library need the protobuf package, which is a lot for one message.
Field numbers: `sentencepiece_model.proto` of the sentencepiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from sentencepiece import SentencePieceProcessor

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces; a GGUF has the same numbers."""


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
    trainer = _integer(3, BPE) + _integer(4, len(pieces)) + _integer(35, int(BYTE in types))
    normalizer = _string(1, "identity") + _integer(3, int(dummy_prefix)) + _integer(4, 0) + _integer(5, 1)
    return body + _field(2, trainer) + _field(3, normalizer)


def model_pieces(processor: SentencePieceProcessor) -> list[tuple[str, float, int]]:
    """Text, score and type of every piece of a loaded model, by index."""
    kinds = (
        (processor.IsUnknown, UNKNOWN),
        (processor.IsControl, CONTROL),
        (processor.IsUnused, UNUSED),
        (processor.IsByte, BYTE),
    )
    return [
        (
            processor.IdToPiece(index),
            processor.GetScore(index),
            next((kind for is_kind, kind in kinds if is_kind(index)), NORMAL),
        )
        for index in range(processor.vocab_size())
    ]


def model_kind(model: bytes) -> int:
    """Whether a serialised model is `UNIGRAM`, `BPE` or another kind (its trainer's `model_type`)."""
    for field, content in _fields(model):
        if field == 2 and isinstance(content, bytes):
            return next(
                (kind for name, kind in _fields(content) if name == 3 and isinstance(kind, int)), UNIGRAM
            )
    return UNIGRAM


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: numbers for varints, bytes for everything else."""
    position = 0

    def varint() -> int:
        nonlocal position
        number, shift = 0, 0
        while True:
            byte = message[position]
            position += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while position < len(message):
        field, wire_type = divmod(varint(), 8)
        if wire_type == _VARINT:
            yield field, varint()
            continue
        size = {_BYTES: -1, _FLOAT: 4, _DOUBLE: 8}[wire_type]
        size = varint() if size < 0 else size
        yield field, message[position : position + size]
        position += size


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
