"""llama.cpp's importance matrices: for each matrix of a model, the mean square of each of its inputs.

There are two forms, a GGUF and an older binary one (`common/imatrix-loader.cpp` of llama.cpp). Both are
untrusted: counts and lengths are checked before anything is allocated from them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGUFValueType

from tinysleb.checkpoint.gguf_names import original_name
from tinysleb.errors import TinyslebError, shown
from tinysleb.export.gguf_mixture import EMBEDDING, HEAD
from tinysleb.formats.gguf_file import Floats, GgufFile, GgufValue, is_gguf, read_gguf
from tinysleb.plan import Plan, plan_from_json
from tinysleb.sublayers import Pair, whole_blocks

SUMS, COUNTS = ".in_sum2", ".counts"
LONGEST_NAME = 256
HINT = "make one from the original or from this model: llama-imatrix -m MODEL.gguf -f TEXT -o IMATRIX.gguf"


@dataclass(frozen=True)
class Imatrix:
    """A file as it was read: `means` by the names of tensors in a GGUF, `[columns]`."""

    path: Path
    means: Mapping[str, Floats]
    datasets: Sequence[str] = ()
    chunks: int = 0

    @property
    def blocks(self) -> int:
        """Of how many blocks the model was that it describes."""
        found = (re.match(r"blk\.(\d+)\.", name) for name in self.means)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def metadata(self) -> dict[str, GgufValue]:
        """What llama.cpp's quantiser says in a GGUF about the importance matrix that it used."""
        values = {
            "file": GgufValue(self.path.name, GGUFValueType.STRING),
            "dataset": GgufValue(", ".join(self.datasets), GGUFValueType.STRING),
            "entries_count": GgufValue(len(self.means), GGUFValueType.UINT32),
            "chunks_count": GgufValue(self.chunks, GGUFValueType.UINT32),
        }
        return {f"quantize.imatrix.{key}": value for key, value in values.items()}


@dataclass(frozen=True)
class Importance:
    """An importance matrix for a model: `positions` has, for each of its blocks, what it is there."""

    imatrix: Imatrix
    positions: Sequence[Pair]

    def of(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """The importance of a matrix's columns; None for a vector, and if an embedding or a head has none.

        Raises TinyslebError if it is missing, or is that of a matrix of another size.
        """
        if len(shape) == 1:
            return None
        original = original_name(name, self.positions)
        mean = self.imatrix.means.get(original)
        if mean is None:
            if name in (EMBEDDING, HEAD):
                return None
            raise TinyslebError(f"{self.imatrix.path} has nothing about {original!r}", HINT)
        if len(mean) != shape[-1]:
            raise TinyslebError(
                f"{self.imatrix.path}: {original!r} has {len(mean)} columns there, {shape[-1]} in the model",
                HINT,
            )
        return mean


def importance_for(imatrix: Imatrix, blocks: int, plan: Mapping[str, Any]) -> Importance:
    """What an importance matrix says of a model of so many `blocks`, which was cut by `plan` (as `plan.json`
    has it, with the plans of earlier cuts inside; empty if it was not).

    The matrix may have been made of this model or of any that it was cut from: its number of blocks tells.
    Raises TinyslebError if it was made of another one.
    """
    positions, sizes = list(whole_blocks(range(blocks))), [blocks]
    while imatrix.blocks != sizes[-1] and plan:
        cut = plan_from_json({**plan}, imatrix.path)
        if len(cut.kept) != sizes[-1]:
            break
        positions = [_before(cut, pair) for pair in positions]
        sizes.append(cut.blocks)
        earlier = plan.get("earlier")
        plan = earlier if isinstance(earlier, dict) else {}
    if imatrix.blocks != sizes[-1]:
        models = ", cut from one of ".join(map(str, sizes))
        raise TinyslebError(
            f"{imatrix.path} describes a model of {imatrix.blocks} blocks; this one has {models}", HINT
        )
    return Importance(imatrix, positions)


def _before(plan: Plan, pair: Pair) -> Pair:
    """What a block of a model was before a plan shortened it."""
    attention, feed_forward = pair
    return Pair(
        None if attention is None else plan.kept[attention].attention,
        None if feed_forward is None else plan.kept[feed_forward].feed_forward,
    )


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix. Raises TinyslebError, saying what is wrong, if it is not sound."""
    if is_gguf(path):
        return _from_gguf(read_gguf(path))
    try:
        with path.open("rb") as file:
            return _Binary(file, path.stat().st_size, path).read()
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error


def _from_gguf(file: GgufFile) -> Imatrix:
    values = file.values()
    if values.get("general.type") != "imatrix":
        kind = shown(values.get("general.type"))
        raise TinyslebError(f"{file.path} is not an importance matrix: its `general.type` is {kind}", HINT)
    means = {}
    for stored in file.tensors:
        if stored.endswith(SUMS):
            name = stored.removesuffix(SUMS)
            if name + COUNTS not in file.tensors:
                raise TinyslebError(f"{file.path} has {stored!r}, but not {name + COUNTS!r}", HINT)
            sums, counts = (file.read_floats(name + end).flatten() for end in (SUMS, COUNTS))
            if len(counts) != 1:
                raise TinyslebError(
                    f"{file.path}: {name!r} is of {len(counts)} experts, which is not supported"
                )
            _check(file.path, name + COUNTS, counts)
            means[name] = _means(file.path, name, sums, counts[0]) if counts[0] else np.ones_like(sums)
    datasets, chunks = values.get("imatrix.datasets"), values.get("imatrix.chunk_count")
    return Imatrix(
        file.path,
        means,
        [str(each) for each in datasets] if isinstance(datasets, list) else [],
        chunks if isinstance(chunks, int) and 0 <= chunks < 2**32 else 0,
    )


def _means(path: Path, name: str, sums: Floats, count: np.float32) -> Floats:
    """Raises TinyslebError for one that is no mean of squares; numpy need not warn of it."""
    with np.errstate(over="ignore", invalid="ignore"):
        means: Floats = sums / count
    _check(path, name, means)
    return means


def _check(path: Path, name: str, values: Floats) -> None:
    wrong = values[~(np.isfinite(values) & (values >= 0))]
    if len(wrong):
        raise TinyslebError(f"{path}: {name!r} holds {wrong[0]}, which is not a mean of squares", HINT)


@dataclass
class _Binary:
    """The older form: for each tensor its name, the number of calls, and as many times the means."""

    file: BinaryIO
    size: int
    path: Path
    means: dict[str, Floats] = field(default_factory=dict)

    def read(self) -> Imatrix:
        for _ in range(self._count("the number of tensors", 12)):
            name = self._text("a name", LONGEST_NAME)
            (calls,) = struct.unpack("<i", self._bytes(4, f"the calls of {name!r}"))
            data = self._bytes(4 * self._count(f"the columns of {name!r}", 4), f"the sums of {name!r}")
            sums = np.frombuffer(data, "<f4").astype(np.float32)
            self.means[name] = _means(self.path, name, sums, np.float32(max(calls, 1)))
        chunks, dataset = 0, ""
        if self.file.tell() < self.size:  # the oldest files end here
            (chunks,) = struct.unpack("<i", self._bytes(4, "the number of chunks"))
            dataset = self._text("the name of the text", self.size)
        return Imatrix(self.path, self.means, [dataset] if dataset else [], max(chunks, 0))

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self.size - self.file.tell():
            raise TinyslebError(f"{self.path} is not an importance matrix, or is truncated: {what}", HINT)
        return self.file.read(count)

    def _count(self, what: str, smallest: int) -> int:
        (count,) = struct.unpack("<i", self._bytes(4, what))
        if count < 1 or count * smallest > self.size - self.file.tell():
            raise TinyslebError(f"{self.path} is not an importance matrix: {what} is {count}", HINT)
        return int(count)

    def _text(self, what: str, longest: int) -> str:
        length = self._count(f"the length of {what}", 1)
        data = self._bytes(min(length, longest), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TinyslebError(
                f"{self.path} is not an importance matrix: {what} is not text", HINT
            ) from error
