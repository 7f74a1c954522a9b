"""A model as the rest of the program sees it: a config, and tensors read one at a time.

`Shortened` leaves blocks out and is again a `Weights`, so that a writer does not know about pruning and the
search does not know about files. A model has hundreds of tensors, so their descriptions are computed once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tinysleb.checkpoint.config import ATTENTION, ModelConfig, block_prefix, half_of, tensor_shapes
from tinysleb.checkpoint.gguf_vocabulary import GgufVocabulary
from tinysleb.checkpoint.tokenizer_folder import TokenizerFolder
from tinysleb.errors import TinyslebError, listed
from tinysleb.plan import Plan
from tinysleb.sublayers import Pair

if TYPE_CHECKING:
    from torch import Tensor

MOST_NAMES_LISTED = 6


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about a tensor: shape (rows first), stored type such as `BF16` or `Q4_1`, bytes."""

    shape: tuple[int, ...]
    type: str
    nbytes: int


class Weights(Protocol):
    """A model's weights by their Hugging Face names."""

    @property
    def path(self) -> Path:
        """The file or folder the model was opened from."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the model, from the headers alone."""

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, in its stored float type or, if quantised, in float32."""


class Checkpoint(Weights, Protocol):
    """A model as it was opened from files: its weights, and what else the files say."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the files before they are used, a line each."""

    def chat_template(self) -> str:
        """The default chat template, as text; '' if there is none."""

    def earlier_plan(self) -> dict[str, Any]:
        """The plan by which the model was shortened before, as `plan.json` has it; empty if it was not, or
        if what is there is not a plan."""

    def tokenizer_files(self) -> TokenizerFolder | GgufVocabulary:
        """What the tokenizer is opened from. Raises TinyslebError for values of the wrong type."""

    def bytes_around(self, tensors: int) -> int:
        """The bytes that a shortened copy with so many tensors takes besides them and its plan, at most."""


@dataclass(frozen=True)
class Shortened:
    """`source` with only the blocks `kept`, or those that halves of its blocks make, numbered from 0."""

    source: Weights
    kept: tuple[Pair, ...]

    @property
    def path(self) -> Path:
        """The path of the original model."""
        return self.source.path

    @cached_property
    def config(self) -> ModelConfig:
        """The shorter model's shape."""
        return self.source.config.shortened(self.kept)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors of the kept blocks, and all that belong to no block."""
        found = self.source.tensors
        return {name: found[self.original_name(name)] for name in tensor_shapes(self.config)}

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`."""
        return self.source.tensor(self.original_name(name), start, stop)

    def original_name(self, name: str) -> str:
        """What a tensor is called in the original model."""
        match = re.match(r"model\.layers\.(\d+)\.", name)
        if match is None:
            return name
        pair, rest = self.kept[int(match[1])], name[match.end() :]
        attention = half_of(rest, self.source.config.architecture) == ATTENTION
        block = pair.attention if attention else pair.feed_forward
        if block is None:
            raise KeyError(name)
        return block_prefix(block) + rest


def shorten(weights: Weights, plan: Plan) -> Weights:
    """`weights` without what `plan` removes. Nothing is copied."""
    return Shortened(weights, plan.kept)


@dataclass(frozen=True)
class Derived:
    """What is made of `source` without changing its shape."""

    source: Weights

    @property
    def path(self) -> Path:
        """As in `Weights`."""
        return self.source.path

    @property
    def config(self) -> ModelConfig:
        """As in `Weights`."""
        return self.source.config


@dataclass(frozen=True)
class Retyped(Derived):
    """`source`, whose tensors are reported as `reported` says, given a name and what the source reports.

    For a writer or a solver that stores tensors in other types; the values stay as the source gives them.
    """

    reported: Callable[[str, TensorInfo], TensorInfo]

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """As in `Weights`, in the types reported."""
        return {name: self.reported(name, info) for name, info in self.source.tensors.items()}

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`."""
        return self.source.tensor(name, start, stop)


def total_bytes(weights: Weights) -> int:
    """The bytes that all tensors take as stored."""
    return sum(info.nbytes for info in weights.tensors.values())


def check_complete(config: ModelConfig, found: Mapping[str, Sequence[int]], where: Path) -> None:
    """Compare the tensors found with those the config asks for. Raises one TinyslebError that lists all
    differences."""
    expected = tensor_shapes(config)
    wrong = [
        f"{name} is {list(found[name])}, should be {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems = (
        ("missing", [name for name in expected if name not in found]),
        ("not part of this family", [name for name in found if name not in expected]),
        ("of the wrong shape", wrong),
    )
    parts = [f"{len(names)} {what}: {listed(names, MOST_NAMES_LISTED)}" for what, names in problems if names]
    if parts:
        raise TinyslebError(
            f"{where} does not hold the tensors its config asks for; {'; '.join(parts)}",
            "the files may be incomplete, or belong to different models",
        )
