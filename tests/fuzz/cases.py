"""A case: a sample with a change that a seed decides, and a command that reads it."""

from __future__ import annotations

import ast
import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.change_gguf import NUMBERS, changed_gguf, poisoned
from fuzz.change_json import EDGES, changed_json, json_text
from sentencepiece import sentencepiece_model_pb2

Change = Callable[[bytes, Random], tuple[bytes, str]]


@dataclass(frozen=True)
class Case:
    """What to run in a folder; `change` says what was changed there."""

    words: list[str]
    change: str


def change_json(data: bytes, random: Random) -> tuple[bytes, str]:
    """A field of a JSON object."""
    value, what = changed_json(json.loads(data), random)
    if random.random() < 0.2:
        value, more = changed_json(value, random)
        what += f", {more}"
    return json_text(value), what


def change_lines(data: bytes, random: Random) -> tuple[bytes, str]:
    """A field of JSON, in one of the lines that each are an object."""
    lines = data.splitlines()
    place = random.randrange(len(lines))
    lines[place], what = change_json(lines[place], random)
    return b"\n".join(lines), f"line {place + 1}, {what}"


def change_safetensors(data: bytes, random: Random) -> tuple[bytes, str]:
    """A field of the header, or values."""
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if random.random() < 0.4:
        name = random.choice([name for name in header if name != "__metadata__"])
        begin, end = header[name]["data_offsets"]
        values, what = poisoned(body[begin:end], random)
        return data[: 8 + size] + body[:begin] + values + body[end:], f"{name}: {what}"
    header, what = changed_json(header, random)
    text = json_text(header)
    length = random.choice([*NUMBERS, len(text) - 1, 10**8]) if random.random() < 0.1 else len(text)
    return struct.pack("<Q", length) + text + body, f"{what}, length {length}"


def change_array(data: bytes, random: Random) -> tuple[bytes, str]:
    """Another array, or another header before the same one."""
    array = np.load(io.BytesIO(data))
    if random.random() < 0.5:
        kinds = ["<i8", "<u8", ">i4", "<f4", "<f8", "?", "<i2", "S3", "<U2", "<c8", "V4", "M8[s]"]
        shapes = [(0,), (72,), (3, 0), (0, 24), (1, 72), (72, 1), (6, 24), (6, 24), (3, 2, 12), ()]
        made = np.resize(array.ravel(), random.choice(shapes))
        made = made.astype(random.choice(["<i4", "<i4", *kinds]), casting="unsafe")
        if made.size and made.dtype.kind in "iuf" and random.random() < 0.6:
            made.flat[0] = random.choice(
                [0, 1, 100, 127] if made.dtype.itemsize < 4 else [0, 379, 399, 511, 512, 2**31 - 1]
            )
        out = io.BytesIO()
        np.save(out, made, allow_pickle=False)
        return out.getvalue(), f"{made.dtype} {made.shape}"
    (size,) = struct.unpack_from("<H", data, 8)
    header: dict[str, Any] = ast.literal_eval(data[10 : 10 + size].decode())
    header[random.choice([*header, "x"])] = random.choice(
        [*EDGES[:60], (2**20, 2**20), (10**6, 24), (-1, 24), "|O", "<f4", (6, 23)]
    )
    text = repr(header).encode("utf-8", "replace")[:60_000] + b"\n"
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + size :], repr(header)[:100]


def change_pieces(data: bytes, random: Random) -> tuple[bytes, str]:
    """A field of a SentencePiece model."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(data)
    piece, choice = random.choice(model.pieces), random.randrange(7)
    if choice == 0:
        piece.piece = random.choice([v for v in EDGES if isinstance(v, str) and v.isprintable()])
    elif choice == 1:
        piece.score = random.choice([0.0, -1e38, 1e38, float("nan"), float("inf")])
    elif choice == 2:
        piece.type = random.choice([1, 2, 3, 4, 5, 6])
    elif choice == 3:
        del model.pieces[random.choice([0, 1, 2, 10, len(model.pieces) // 2]) :]
    elif choice == 4:
        model.pieces.append(piece)
    else:
        spec = random.choice([model.trainer_spec, model.normalizer_spec])
        field = random.choice(spec.DESCRIPTOR.fields)
        try:
            setattr(spec, field.name, random.choice(EDGES[:60]))
        except (TypeError, ValueError, AttributeError, OverflowError):
            spec.ClearField(field.name)
        return bytes(model.SerializePartialToString()), f"{field.name}"
    return bytes(model.SerializePartialToString()), f"piece {piece.piece[:20]!a}, {choice}"


def change_numbers(data: bytes, random: Random) -> tuple[bytes, str]:
    """A 32-bit number at one of the first places of a binary file, or anywhere."""
    place = random.choice([0, 1, 2, 3, 4, 5, 6, random.randrange(len(data) // 4)]) * 4
    number = random.choice([*NUMBERS, len(data), len(data) // 4]) % 2**32
    return data[:place] + struct.pack("<I", number) + data[place + 4 :], f"{number} at {place}"


def change_bytes(data: bytes, random: Random) -> tuple[bytes, str]:
    """Any bytes: flipped, cut, taken out, put in, copied over others; half of the time where headers are."""
    size = len(data)
    most = size if random.random() < 0.5 else min(size, 400)
    first, second = sorted(random.randrange(most + 1) for _ in range(2))
    new = random.choice([b"\0", b"\xff", b"\x1b[2J", b"\n", b"'", b'"', b"{", b"\xed\xa0\x80", b"\x80"])
    flipped = bytearray(data)
    for _ in range(random.choice([1, 1, 3, 30])):
        flipped[random.randrange(size)] ^= 1 << random.randrange(8)
    others = (b"", b"\0" * 64, b"<html>no</html>", b"PK\x03\x04", b"GGUF", b"\x93NUMPY")
    changes = (
        (bytes(flipped), "bits flipped"),
        (data[:first], f"cut at {first}"),
        (data[:first] + data[second:], f"{first}:{second} left out"),
        (data[:first] + new * random.choice([1, 1, 8, 5000]) + data[first:], f"{new!r} at {first}"),
        (data[:first] + bytes(second - first) + data[second:], f"zeros at {first}:{second}"),
        (data[:second] + data[first:], f"{first}:{second} twice"),
        (random.choice(others), "replaced"),
    )
    return random.choice(changes)


MODEL_COMMANDS = """
inspect M --json
inspect M
eval M --tokens tokens.npy --json
eval M --text text.txt --windows 1 --window-length 16
export M --gguf out.gguf
export M --gguf out.gguf --type q8_0 --pre smollm
export M --gguf out.gguf --type f16 --pre smollm
export M --hf out
prune M --blocks 1 -o OUT
prune M --plan plan.json --force -o OUT
prune M --blocks 2 --type q4_0 -o OUT
prune M --blocks F1,A2 -o OUT
prune M --remove 1 --no-heal --tokens tokens.npy -o OUT
prune M --remove 2 --no-heal --tokens tokens.npy --exact --cut half -o OUT --json
prune M --remove 1 --no-heal --tokens tokens.npy --score kl -o OUT
prune M --remove 1 --no-heal --tokens tokens.npy --metric last -o OUT
prune M --remove 1 --no-heal --text text.txt --windows 1 --window-length 16 -o OUT
heal M --plan plan.json --force --heal solve --tokens tokens.npy --heal-tokens 96 -o OUT
heal M --plan plan.json --force --heal solve --text text.txt --heal-tokens 768 --self-text 256 -o OUT
heal M --plan plan.json --force --tokens tokens.npy --heal-tokens 96 --distill-tokens 48 -o OUT
draft M --remove 2 --tokens tokens.npy --heal none --force -o out.gguf
export M --gguf out.gguf --type q4_0 --imatrix imatrix.gguf --pre smollm
compare M cut.gguf --tokens tokens.npy --json
compare bytes.gguf M --tokens tokens.npy
report M -o out.html
export M --gguf out.gguf --draft bytes.gguf
"""
TOKENIZER_COMMANDS = """
eval M --text text.txt --windows 1 --window-length 16 --json
eval M --text chats.jsonl --windows 1 --window-length 16
export M --gguf out.gguf
export M --gguf out.gguf --pre smollm
export M --hf out
prune M --blocks 1 -o OUT
inspect M
"""
PLAN_COMMANDS = """
prune bytes.gguf --plan plan.json -o out.gguf
prune bytes.gguf --plan plan.json --force -o out.gguf
prune bytes --plan plan.json --force -o out
heal bytes --plan plan.json --force --heal solve --tokens tokens.npy --heal-tokens 96 -o out
report plan.json -o out.html
report plan.json -o out.html --compare compared.json
compare bytes.gguf plan.json --tokens tokens.npy
compare bytes.gguf plan.json@1 --tokens tokens.npy --json
prune bytes.gguf --remove 1 --no-heal --tokens tokens.npy -o out.gguf --resume
"""
TOKENS_COMMANDS = """
eval bytes --tokens tokens.npy --json
compare bytes cut.gguf --tokens tokens.npy
prune bytes.gguf --remove 1 --no-heal --tokens tokens.npy -o out.gguf
heal bytes.gguf --plan plan.json --heal solve --tokens tokens.npy --heal-tokens 96 -o out.gguf
"""
IMATRIX_COMMANDS = """
export bytes --gguf out.gguf --type q4_0 --imatrix imatrix.gguf --pre smollm
export cut.gguf --gguf out.gguf --type q5_1 --imatrix imatrix.gguf --pre smollm
"""
QUESTIONS = "--tokens tokens.npy --questions 2"
TEXT_COMMANDS = """
eval bytes --text text.txt --windows 1 --window-length 16
eval pieces --text text.txt --windows 1 --window-length 16 --json
prune bytes.gguf --remove 1 --no-heal --text text.txt --windows 1 --window-length 16 -o out.gguf
"""


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


FOLDER_FILES: Mapping[str, tuple[Change, str]] = {
    "config.json": (change_json, MODEL_COMMANDS),
    "model.safetensors": (change_safetensors, MODEL_COMMANDS),
    "model.safetensors.index.json": (change_json, MODEL_COMMANDS),
    "tokenizer.json": (change_json, TOKENIZER_COMMANDS),
    "tokenizer.model": (change_pieces, TOKENIZER_COMMANDS),
    "tokenizer_config.json": (change_json, TOKENIZER_COMMANDS),
    "special_tokens_map.json": (change_json, TOKENIZER_COMMANDS),
    "vocab.json": (change_json, TOKENIZER_COMMANDS),
    "merges.txt": (change_bytes, TOKENIZER_COMMANDS),
    "generation_config.json": (change_json, TOKENIZER_COMMANDS),
    "README.md": (change_bytes, "export M --hf out\nexport M --gguf out.gguf --pre smollm"),
    "plan.json": (change_json, MODEL_COMMANDS),
}
FILES: Mapping[str, tuple[Change, str, float]] = {
    "plan.json": (change_json, PLAN_COMMANDS, 1),
    "out.gguf.unfinished.json": (change_json, _lines(PLAN_COMMANDS)[-1], 1),
    "tokens.npy": (change_array, TOKENS_COMMANDS, 1),
    "base.kld": (
        change_numbers,
        "compare bytes.gguf cut.gguf --kl-divergence-base base.kld\n"
        "compare bytes.gguf cut.gguf --kl-divergence-base base.kld --tokens tokens.npy --json",
        0.2,
    ),
    "imatrix.gguf": (changed_gguf, IMATRIX_COMMANDS, 1),
    "imatrix.dat": (change_numbers, IMATRIX_COMMANDS.replace(".gguf --pre", ".dat --pre"), 1),
    "compared.json": (change_json, "report plan.json -o out.html --compare compared.json", 1),
    "text.txt": (change_bytes, TEXT_COMMANDS, 1),
    "chats.jsonl": (change_lines, "eval bytes --text chats.jsonl --windows 1 --window-length 16", 0.2),
    "hellaswag.txt": (change_bytes, f"compare bytes cut.gguf {QUESTIONS} --hellaswag hellaswag.txt", 0.2),
    "winogrande.csv": (change_bytes, f"compare bytes cut.gguf {QUESTIONS} --winogrande winogrande.csv", 0.2),
    "choices.jsonl": (change_lines, f"compare bytes cut.gguf {QUESTIONS} --choices choices.jsonl", 0.2),
    "choices.bin": (change_numbers, f"compare bytes cut.gguf {QUESTIONS} --multiple-choice choices.bin", 0.2),
}
FOLDERS = ("bytes", "bytes", "pieces", "phi3", "qwen2", "gpt2", "shards", "cut")
SLOW = {"inspect": 0.2, "compare": 0.1, "draft": 0.1, "heal": 0.5}
"""How often the commands that take longest are run, where others are once."""
GGUFS = (
    "bytes.gguf",
    "bytes.gguf",
    "pieces.gguf",
    "phi3.gguf",
    "qwen2.gguf",
    "k.gguf",
    "deci.gguf",
    "cut.gguf",
)


def make_case(seed: int, samples: Path, folder: Path) -> Case:
    """Put the sample files, one of them changed, into the empty `folder`."""
    random = Random(seed)
    kind = random.random()
    if kind < 0.45:
        model = random.choice(FOLDERS)
        name = random.choice(
            sorted(path.name for path in (samples / model).iterdir() if path.name in FOLDER_FILES)
        )
        change, commands = FOLDER_FILES[name]
        target, out = f"{model}/{name}", "out"
    elif kind < 0.75:
        target = model = random.choice(GGUFS)
        change, commands, out = changed_gguf, MODEL_COMMANDS, "out.gguf"
    else:
        names = sorted(FILES)
        (target,) = random.choices(names, [FILES[name][2] for name in names])
        (change, commands, _often), model, out = FILES[target], "", ""
    lines = _lines(commands)
    weights = [SLOW.get(line.split()[0], 1.0) for line in lines]
    words = random.choices(lines, weights)[0].replace("OUT", out).split()
    words = [model if word == "M" else word for word in words]
    named = {word.partition("@")[0] for word in words}
    for path in samples.rglob("*"):
        if path.is_file() and path.relative_to(samples).parts[0] in named:
            place = folder / path.relative_to(samples)
            place.parent.mkdir(exist_ok=True)
            os.link(path, place)
    source = samples / ("plan.json" if "unfinished" in target else target)
    chosen = change_bytes if random.random() < 0.2 else change
    data, what = chosen(source.read_bytes(), random)
    (folder / target).unlink(missing_ok=True)
    (folder / target).write_bytes(data)
    return Case(words, f"{target}: {what}")
