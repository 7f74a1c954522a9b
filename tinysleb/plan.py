"""The result of a search, as plain values and as readable JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_json_object
from tinysleb.sublayers import Cut, Pair, cut_name, cut_named, pairs_of, stack_left, sublayers_of

MOST_BLOCKS = 10_000
PERPLEXITY, DIVERGENCE = "perplexity", "kl"
SELF_SOURCE = "text sampled from the model"
"""How a plan calls what the model wrote itself."""
BY_HAND = 'a plan can be written by hand: {"blocks": 30, "removed": [3, "F6 A7"]}'
SIZE_NUMBERS = ("bytes", "prompt_speed", "generation_speed")
"""What a plan says of the model after no cut, one, two and so on: its size, and how many times as fast as the
original it can be at best."""
SOURCE_NUMBERS = ("tokens", "original", "shortened", "healed", "closed")
"""What a plan says of each text that was healed on; losses are those of windows held back."""


@dataclass(frozen=True)
class Score:
    """A candidate's mean loss per token, in nats, and on how many calibration windows it was measured.

    `excess`: how much larger it was, on these windows, than that of the best candidate then; `margin`: how
    much larger it is on all windows at the least, beyond doubt. None if not known.
    """

    loss: float
    windows: int
    excess: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Round:
    """One round: the cut it made, the loss it left (nan if unknown), and the scores of the candidates that
    were looked at."""

    cut: Cut
    loss: float
    candidates: Mapping[Cut, Score]


@dataclass(frozen=True)
class Plan:
    """Which sublayers to leave out, in order, and what the choice was made from.

    `settings` holds what the search was given: model fingerprint, text hash, windows, seed, dtype, …
    `target` is how many cuts are to be made at most; fewer rounds than that is an unfinished search.
    `stopped` says why a finished one ended. `loss` is the original model's. `scores`: a metric's value for
    each cut, where the metric is not a loss. `healing`: what was healed on and what it did (`heal/run.py`);
    empty if nothing was healed. `sizes`: `SIZE_NUMBERS` after each number of cuts, where an output was
    written. No times are kept: the same search gives the same bytes.
    """

    blocks: int
    target: int
    settings: Mapping[str, Any]
    loss: float | None = None
    rounds: tuple[Round, ...] = ()
    stopped: str | None = None
    scores: Mapping[Cut, float] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[Mapping[str, float], ...] = ()

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """What is left out, in order."""
        return tuple(round_.cut for round_ in self.rounds)

    @property
    def removed(self) -> tuple[int | str, ...]:
        """The same by name: indices of whole blocks, and sublayers such as "F5 A6"."""
        return tuple(map(cut_name, self.cuts))

    @property
    def stack(self) -> Cut:
        """The sublayers that stay, ascending."""
        return stack_left(self.blocks, self.cuts)

    @property
    def kept(self) -> tuple[Pair, ...]:
        """The blocks that stay, or that two halves make."""
        return pairs_of(self.stack)

    def first(self, count: int) -> Plan:
        """The plan that makes only so many of its cuts."""
        return replace(self, target=count, rounds=self.rounds[:count])

    @property
    def by_divergence(self) -> bool:
        """Whether losses are divergences from the original, of which there is no perplexity."""
        return self.settings.get("score") == DIVERGENCE

    @property
    def finished(self) -> bool:
        """Whether the search made as many cuts as it was asked for."""
        return len(self.rounds) == self.target


def usual_score(metric: str) -> str:
    """What losses are in a search by a metric, unless it is said: only one that scores every round anew asks
    the original."""
    return DIVERGENCE if metric == PERPLEXITY else PERPLEXITY


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as `plan.json` has it; `removed` comes first, for people and programs alike."""
    return {
        "removed": list(plan.removed),
        "blocks": plan.blocks,
        "kept": [cut_name(sublayers_of([pair])) for pair in plan.kept],
        "target": plan.target,
        "stopped": plan.stopped,
        **_with_perplexity(plan.loss, plan),
        "settings": dict(plan.settings),
        **({"scores": _by_name(plan.scores)} if plan.scores else {}),
        **({"healing": dict(plan.healing)} if plan.healing else {}),
        **({"sizes": [dict(size) for size in plan.sizes]} if plan.sizes else {}),
        "rounds": [_round_to_json(round_, plan) for round_ in plan.rounds],
    }


def _by_name(values: Mapping[Cut, Any]) -> dict[str, Any]:
    return {str(cut_name(cut)): value for cut, value in values.items()}


def _round_to_json(round_: Round, plan: Plan) -> dict[str, Any]:
    return {
        "removed": cut_name(round_.cut),
        **_with_perplexity(round_.loss, plan),
        "candidates": {name: asdict(score) for name, score in _by_name(round_.candidates).items()},
    }


def _with_perplexity(loss: float | None, plan: Plan) -> dict[str, float | None]:
    if loss is None or math.isnan(loss):
        return {"loss": None, "perplexity": None}
    found = math.inf if plan.by_divergence else perplexity(loss)
    return {"loss": loss, "perplexity": found if math.isfinite(found) else None}  # JSON has no infinity


def perplexity(loss: float) -> float:
    """`exp(loss)`, and infinity where that does not fit a float."""
    return math.exp(loss) if loss < 700 else math.inf


def shown_loss(plan: Plan, loss: float, digits: int = 2) -> str:
    """A loss as a person is told it: as perplexity, or in nats if it is a divergence. Rounding can leave that
    below 0."""
    return f"{max(loss, 0.0):.3f}" if plan.by_divergence else f"{perplexity(loss):.{digits}f}"


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
    if not isinstance(removed, list):
        raise TinyslebError(f"{path}: `removed` should be a list of blocks, found {shown(removed)}", BY_HAND)
    cuts = [cut_named(item) for item in removed]
    if None in cuts:
        raise TinyslebError(
            f"{path}: `removed` has {shown(removed[cuts.index(None)])}; it should have indices of blocks, or "
            'names of sublayers such as "F6 A7"',
            BY_HAND,
        )
    gone = [sublayer for cut in cuts for sublayer in cut or ()]
    if len(set(gone)) < len(gone) or not set(gone) < set(range(2 * blocks)):
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
        return _from_json(value, blocks, [cut for cut in cuts if cut], target)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TinyslebError(
            f"{path}: `rounds`, `scores`, `healing` or `sizes` is not as tinysleb writes it ({error!r})"
        ) from error


def _from_json(value: dict[str, Any], blocks: int, cuts: list[Cut], target: int) -> Plan:
    rounds = [_round(item) for item in value.get("rounds") or []]
    if [round_.cut for round_ in rounds] != cuts:
        rounds = [Round(cut, math.nan, {}) for cut in cuts]
    return Plan(
        blocks=blocks,
        target=target,
        settings=dict(value.get("settings") or {}),
        loss=value.get("loss"),
        rounds=tuple(rounds),
        stopped=None if value.get("stopped") is None else str(value["stopped"]),
        scores={_cut(name): float(score) for name, score in (value.get("scores") or {}).items()},
        healing=_healing(value.get("healing") or {}),
        sizes=_sizes(value.get("sizes") or (), len(rounds)),
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


def _sizes(items: Sequence[Mapping[str, Any]], cuts: int) -> tuple[dict[str, float], ...]:
    """Those up to the last cut: of a plan that was cut short by hand, the rest says nothing."""
    sizes = tuple(
        {"bytes": int(item["bytes"])} | {name: float(item[name]) for name in SIZE_NUMBERS[1:]}
        for item in items
    )
    return sizes[: cuts + 1] if len(sizes) > cuts else ()


def _matrix(item: dict[str, Any]) -> str:
    """Older plans do not say which matrix of a block was healed: it was always the same."""
    return str(item.get("matrix", "mlp.down_proj"))


def _with_original(source: dict[str, Any]) -> dict[str, Any]:
    """Older plans call the original model's loss `dense`."""
    return {"original" if key == "dense" else key: value for key, value in source.items()}


def _round(item: dict[str, Any]) -> Round:
    scores = {
        _cut(name): Score(
            float(score["loss"]),
            int(score["windows"]),
            excess=_number(score.get("excess")),
            margin=_number(score.get("margin")),
        )
        for name, score in item["candidates"].items()
    }
    loss = math.nan if item["loss"] is None else float(item["loss"])
    return Round(_cut(item["removed"]), loss, scores)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _cut(name: object) -> Cut:
    if (cut := cut_named(name)) is None:
        raise ValueError(f"{name!r} names no sublayers")
    return cut
