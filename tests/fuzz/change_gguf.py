"""A GGUF taken apart, changed in a few fields, and put together again, by nothing of tinysleb's."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NUMBERS = (
    0, 1, 2, 3, 8, 31, 63, 64, 65, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1,
    2**64 - 1,
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-9, 1e-46, 1e38, 3.4e38, math.nan, math.inf, -math.inf, 1e-38)
TEXTS = (
    b"", b"x", b"llama", b"gpt2", b"qwen2", b"mistral", b"yarn", b"linear", b"longrope", b"default",
    b"\xff\xfe", b"\x1b[31m", b"a\0b", b"\n", b"{", b"[" * 3000, b"a" * 100_000, "é".encode() * 200,
    b'{"blocks": 3}', b"\xed\xa0\x80", b"../x",
)  # fmt: skip
KEYS = b"""
    general.alignment split.count split.no split.tensors.count general.architecture
    llama.rope.scaling.type llama.rope.scaling.factor llama.rope.scaling.attn_factor
    llama.rope.dimension_count llama.attention.key_length llama.attention.value_length
    llama.attention.sliding_window llama.expert_count llama.vocab_size llama.attention.scale
    llama.rope.scaling.original_context_length tokenizer.ggml.add_eos_token tokenizer.ggml.bos_token_id
    tokenizer.ggml.pre tokenizer.chat_template tinysleb.plan llama.leading_dense_block_count
    tokenizer.ggml.add_space_prefix tokenizer.ggml.unknown_token_id llama.logit_scale general.file_type
""".split()


@dataclass
class Tensor:
    """As its info says, and its bytes."""

    name: bytes
    shape: list[int]
    type: int
    offset: int
    data: bytes


@dataclass
class Parts:
    """`metadata`: keys, types and values; an array's value is its items' type and its items."""

    metadata: list[list[Any]]
    tensors: list[Tensor]
    alignment: int = 32


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return value

    def text(self) -> bytes:
        size = self.number("Q")
        self.place += size
        return self.data[self.place - size : self.place]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            item, count = self.number("I"), self.number("Q")
            return [item, [self.value(item) for _ in range(count)]]
        return self.number(SCALARS[kind])


def take_apart(data: bytes) -> Parts:
    """A valid file of version 3."""
    reader = _Reader(data)
    reader.place = 8
    tensor_count, key_count = reader.number("Q"), reader.number("Q")
    metadata = []
    for _ in range(key_count):
        key, kind = reader.text(), reader.number("I")
        metadata.append([key, kind, reader.value(kind)])
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.number("I")
        shape = [reader.number("Q") for _ in range(dimensions)]
        tensors.append(Tensor(name, shape, reader.number("I"), reader.number("Q"), b""))
    start = -(-reader.place // 32) * 32
    ends = sorted({*(each.offset for each in tensors), len(data) - start})
    for each in tensors:
        end = ends[ends.index(each.offset) + 1]
        each.data = data[start + each.offset : start + end]
    return Parts(metadata, tensors)


def _packed(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return struct.pack("<Q", len(value)) + bytes(value)
    if kind == ARRAY:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(_packed(item, each) for each in items)
    form = SCALARS.get(kind, "Q")
    if form in "fd":
        try:
            return struct.pack("<" + form, value)
        except OverflowError:
            return struct.pack("<" + form, float("inf"))
    size = struct.calcsize(form)
    return int(value % 2 ** (8 * size)).to_bytes(size, "little")


def put_together(parts: Parts) -> bytes:
    """The file again, with the offsets that its tensors say."""
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(parts.tensors), len(parts.metadata))]
    for key, kind, value in parts.metadata:
        out += [_packed(STRING, key), struct.pack("<I", kind), _packed(kind, value)]
    for each in parts.tensors:
        shape = [size % 2**64 for size in each.shape]
        out += [_packed(STRING, each.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        out.append(struct.pack("<IQ", each.type % 2**32, each.offset % 2**64))
    header = b"".join(out)
    header = header.ljust(-(-len(header) // 32) * 32, b"\0")
    return header + b"".join(each.data for each in parts.tensors)


def changed_gguf(data: bytes, random: Random) -> tuple[bytes, str]:
    """The file with a field changed, and which."""
    parts = take_apart(data)
    changes = (_change_value, _change_value, _change_value, _change_key, _change_tensor, _change_data)
    what = random.choice(changes)(parts, random)
    return put_together(parts), what


def _change_value(parts: Parts, random: Random) -> str:
    entry = random.choice(parts.metadata)
    key, kind, value = entry
    choice = random.randrange(8)
    if choice == 0:  # another type
        entry[1:] = _any_value(random)
    elif kind == ARRAY:
        _change_array(value, random)
    elif kind == STRING:
        entry[2] = random.choice(TEXTS) if choice < 6 else value + random.choice(TEXTS)
    elif SCALARS[kind] in "fd":
        entry[2] = random.choice([*FLOATS, value * 2, -value])
    else:
        entry[2] = random.choice([*NUMBERS, value + 1, value - 1, value * 2])
    return f"{key.decode()} from {value!r:.30} to type {entry[1]} {entry[2]!a:.40}"


def _scalars(random: Random) -> list[tuple[int, Any]]:
    return [(kind, random.choice(_edges(kind))) for kind in SCALARS]


def _edges(kind: int) -> Sequence[Any]:
    if kind == STRING:
        return [text[:50] for text in TEXTS]
    return FLOATS if SCALARS.get(kind, "Q") in "fd" else NUMBERS


def _any_value(random: Random) -> tuple[int, Any]:
    return random.choice([(STRING, random.choice(TEXTS)), _array(random), *_scalars(random)])


def _array(random: Random) -> tuple[int, list[Any]]:
    count = random.choice([0, 1, 2, 3, 7, 5000])
    if random.random() < 0.3:
        return ARRAY, [STRING, [random.choice(TEXTS[:10]) for _ in range(count)]]
    kind, value = random.choice(_scalars(random))
    return ARRAY, [kind, [value] * count]


def _change_array(value: list[Any], random: Random) -> None:
    kind, items = value
    choice = random.randrange(5)
    if choice == 0:
        value[:] = _array(random)[1]
    elif choice == 1 and items:
        del items[random.randrange(len(items))]
    elif choice == 2 and items:
        items.append(items[random.randrange(len(items))])
    elif items:
        for _ in range(random.choice([1, 1, 5, len(items)])):
            items[random.randrange(len(items))] = random.choice(_edges(kind))


def _change_key(parts: Parts, random: Random) -> str:
    choice, place = random.randrange(4), random.randrange(len(parts.metadata))
    key = parts.metadata[place][0]
    if choice == 0:
        del parts.metadata[place]
        return f"{key.decode()} deleted"
    if choice == 1:
        parts.metadata.append(list(parts.metadata[place]))
        return f"{key.decode()} twice"
    new = random.choice(KEYS)
    if choice == 2:
        parts.metadata[place][0] = new
        return f"{key.decode()} renamed {new.decode()}"
    kind, value = _any_value(random)
    parts.metadata = [entry for entry in parts.metadata if entry[0] != new] + [[new, kind, value]]
    return f"{new.decode()} added, type {kind} {value!a:.40}"


def _change_tensor(parts: Parts, random: Random) -> str:
    tensor, other, last = random.choice(parts.tensors), random.choice(parts.tensors), parts.tensors[-1]
    before, choice = f"{tensor.name.decode()} {tensor.shape}", random.randrange(6)
    if choice == 0:
        names = [b"model.norm.weight", b"blk.99.attn_q.weight", other.name]
        tensor.name = random.choice([*TEXTS[:14], *names])
    elif choice == 1:
        shape, size = tensor.shape, random.choice(NUMBERS)
        tensor.shape = random.choice([[], [0], [1] * 5, shape[::-1], [size, *shape[1:]], [*shape, 1]])
    elif choice == 2:
        tensor.type = random.choice([*range(45), 2**31, 2**32 - 1])
    elif choice == 3:
        tensor.offset = random.choice([*NUMBERS, tensor.offset + 32, tensor.offset + 1, other.offset])
    elif choice == 4:
        parts.tensors.remove(tensor)
    else:
        name = random.choice([b"extra", b"rope_freqs.weight", b"blk.0.x.weight"])
        parts.tensors.append(Tensor(name, [32], 0, last.offset + len(last.data), bytes(128)))
    return f"{before} ({choice}) now {tensor.name!a:.30} {tensor.shape} {tensor.type} {tensor.offset}"


def _change_data(parts: Parts, random: Random) -> str:
    tensor = random.choice(parts.tensors)
    tensor.data, what = poisoned(tensor.data, random)
    return f"{tensor.name.decode()}: {what}"


def poisoned(data: bytes, random: Random) -> tuple[bytes, str]:
    """Values that are no numbers, or too large, somewhere in the data or everywhere."""
    value = random.choice([float("nan"), float("inf"), -float("inf"), 1e38, 3e38, 1e30, -1e20, 1e-40, 0.0])
    form = random.choice("fe") if abs(value) <= 6e4 or value != value or abs(value) == float("inf") else "f"
    one = struct.pack("<" + form, value)
    if random.random() < 0.3:
        return (one * (len(data) // len(one) + 1))[: len(data)], f"all {value}"
    place = random.randrange(max(1, len(data) // 4)) * 4
    return (data[:place] + one + data[place + len(one) :])[: len(data)], f"{value} at {place}"
