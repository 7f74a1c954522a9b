"""What a writer is given and what it returns, and the plan as a model stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.huggingface_source import HuggingfaceWeights
from tinysleb.checkpoint.weights import Weights
from tinysleb.export.imatrix import Importance
from tinysleb.formats.gguf_file import GgufTensor, GgufValue
from tinysleb.plan import Plan, plan_to_json
from tinysleb.sublayers import Pair

SHARD_BYTES = 5 * 10**9
Source = TypeVar("Source", GgufWeights, HuggingfaceWeights)


@dataclass(frozen=True)
class Job(Generic[Source]):
    """What a writer is asked for.

    `model` is what to write to `out`. It was opened as `source`, of which it has the blocks `kept`;
    `replaced` has, by name, the tensors that are not the source's. `plan` is what to store as `plan.json`,
    empty for a model that was never shortened. The other fields are those of `write`.
    """

    model: Weights
    source: Source
    kept: tuple[Pair, ...]
    replaced: Mapping[str, GgufTensor]
    out: Path
    plan: dict[str, Any]
    type_name: str
    pre: str | None
    shard_bytes: int
    unknown_arrays: str | None
    importance: Importance | None


@dataclass(frozen=True)
class Written:
    """What a writer did: the metadata of a GGUF, and what the user should be told."""

    metadata: Mapping[str, GgufValue] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_beside(out: Path) -> Path:
    """Where the plan of a GGUF is written."""
    return out.with_name(out.name.removesuffix(".gguf") + ".plan.json")


def stored_plan(plan: Plan | None, earlier: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a plan; of a model shortened twice, with the `earlier` one."""
    if plan is None:
        return earlier
    return plan_to_json(plan) | ({"earlier": earlier} if earlier else {})


def compact_json(values: dict[str, Any]) -> str | None:
    """A plan as metadata have it; None for none."""
    return json.dumps(values, separators=(",", ":")) if values else None
