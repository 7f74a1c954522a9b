"""The result of a search, as plain values and as readable JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_json_object

MOST_BLOCKS = 10_000
PERPLEXITY = "perplexity"
BY_HAND = 'a plan can be written by hand: {"blocks": 30, "removed": [3, 7]}'
SOURCE_NUMBERS = ("tokens", "original", "shortened", "healed", "closed")
"""What a plan says of each text that was healed on; losses are those of windows held back."""


@dataclass(frozen=True)
class Score:
    """A candidate's mean loss per token, in nats, and on how many calibration windows it was measured."""

    loss: float
    windows: int


@dataclass(frozen=True)
class Round:
    """One round: the block it removed, the loss it left (nan if unknown), and every candidate's score."""

    removed: int
    loss: float
    candidates: Mapping[int, Score]


@dataclass(frozen=True)
class Plan:
    """Which blocks to leave out, in order, and what the choice was made from.

    `settings` holds what the search was given: model fingerprint, text hash, windows, seed, dtype, …
    `target` is how many blocks are to go at most; fewer rounds than that is an unfinished search. `stopped`
    says why a finished one ended. `loss` is the original model's. `scores`: a metric's value for each block,
    where the metric is not a loss. `healing`: what was healed on and what it did (`heal/run.py`); empty if
    nothing was healed. No times are kept: the same search gives the same bytes.
    """

    blocks: int
    target: int
    settings: Mapping[str, Any]
    loss: float | None = None
    rounds: tuple[Round, ...] = ()
    stopped: str | None = None
    scores: Mapping[int, float] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removed(self) -> tuple[int, ...]:
        """Original block indices in order of removal."""
        return tuple(round_.removed for round_ in self.rounds)

    @property
    def kept(self) -> tuple[int, ...]:
        """Original block indices that stay, ascending."""
        return tuple(index for index in range(self.blocks) if index not in self.removed)

    @property
    def finished(self) -> bool:
        """Whether the search removed as many blocks as it was asked for."""
        return len(self.rounds) == self.target


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as `plan.json` has it; `removed` comes first, for people and programs alike."""
    rounds = [asdict(round_) | _with_perplexity(round_.loss) for round_ in plan.rounds]
    return {
        "removed": list(plan.removed),
        "blocks": plan.blocks,
        "target": plan.target,
        "stopped": plan.stopped,
        **_with_perplexity(plan.loss),
        "settings": dict(plan.settings),
        **({"scores": dict(plan.scores)} if plan.scores else {}),
        **({"healing": dict(plan.healing)} if plan.healing else {}),
        "rounds": rounds,
    }


def _with_perplexity(loss: float | None) -> dict[str, float | None]:
    if loss is None or math.isnan(loss):
        return {"loss": None, "perplexity": None}
    found = perplexity(loss)
    return {"loss": loss, "perplexity": found if math.isfinite(found) else None}  # JSON has no infinity


def perplexity(loss: float) -> float:
    """`exp(loss)`, and infinity where that does not fit a float."""
    return math.exp(loss) if loss < 700 else math.inf


def read_plan(path: Path) -> Plan:
    """A plan from a JSON file; see `plan_from_json`."""
    return plan_from_json(read_json_object(path), path)


def plan_from_json(value: dict[str, Any], path: Path) -> Plan:
    """A plan from a JSON object. `blocks` and `removed` alone, as written by hand, will do.

    Raises TinyslebError naming the file, `path`, and the field that is wrong.
    """
    blocks, removed = value.get("blocks"), value.get("removed")
    if type(blocks) is not int or not 1 <= blocks <= MOST_BLOCKS:
        raise TinyslebError(
            f"{path}: `blocks` should be the model's number of blocks, found {shown(blocks)}", BY_HAND
        )
    if not isinstance(removed, list) or any(type(item) is not int for item in removed):
        raise TinyslebError(
            f"{path}: `removed` should be a list of block indices, found {shown(removed)}", BY_HAND
        )
    if len(removed) >= blocks or len(set(removed)) < len(removed) or not set(removed) <= set(range(blocks)):
        raise TinyslebError(
            f"{path}: `removed` is {shown(removed)}; it should name some of the blocks 0 … {blocks - 1}, "
            "each once"
        )
    target, loss = value.get("target", len(removed)), value.get("loss")
    if type(target) is not int or target < len(removed):
        raise TinyslebError(f"{path}: `target` should be how many blocks were to go, found {target!r}")
    if loss is not None and type(loss) not in (int, float):
        raise TinyslebError(f"{path}: `loss` should be a number or null, found {loss!r}")
    try:
        return _from_json(value, blocks, removed, target)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TinyslebError(
            f"{path}: `rounds`, `scores` or `healing` is not as tinysleb writes it ({error!r})"
        ) from error


def _from_json(value: dict[str, Any], blocks: int, removed: list[int], target: int) -> Plan:
    rounds = [_round(item) for item in value.get("rounds") or []]
    if [round_.removed for round_ in rounds] != removed:
        rounds = [Round(index, math.nan, {}) for index in removed]
    return Plan(
        blocks=blocks,
        target=target,
        settings=dict(value.get("settings") or {}),
        loss=value.get("loss"),
        rounds=tuple(rounds),
        stopped=None if value.get("stopped") is None else str(value["stopped"]),
        scores={int(index): float(score) for index, score in (value.get("scores") or {}).items()},
        healing=_healing(value.get("healing") or {}),
    )


def _healing(value: dict[str, Any]) -> dict[str, Any]:
    """What healing did, with the values that a report shows; whatever else it says stays."""
    sources = [
        {**_with_original(item), "source": str(item["source"])}
        | {name: float(_with_original(item)[name]) for name in SOURCE_NUMBERS}
        for item in value.get("sources", ())
    ]
    blocks = [
        {**item, "block": int(item["block"]), "type": str(item["type"]), "matrix": _matrix(item)}
        | {name: float(item[name]) for name in ("before", "stored")}
        for item in value.get("blocks", ())
    ]
    return {**value, "sources": sources, "blocks": blocks} if value else {}


def _matrix(item: dict[str, Any]) -> str:
    """Older plans do not say which matrix of a block was healed: it was always the same."""
    return str(item.get("matrix", "mlp.down_proj"))


def _with_original(source: dict[str, Any]) -> dict[str, Any]:
    """Older plans call the original model's loss `dense`."""
    return {"original" if key == "dense" else key: value for key, value in source.items()}


def _round(item: dict[str, Any]) -> Round:
    scores = {
        int(index): Score(float(score["loss"]), int(score["windows"]))
        for index, score in item["candidates"].items()
    }
    loss = math.nan if item["loss"] is None else float(item["loss"])
    return Round(int(item["removed"]), loss, scores)
