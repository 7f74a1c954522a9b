"""What `prune` would bring and take, told before anything is tried: the values that `inspect` shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.options import DISTILL_MINUTES, DISTILL_TOKENS
from tinysleb.commands.work import healing_stages, search_stages, seconds_of
from tinysleb.compute.compute import Compute
from tinysleb.errors import TinyslebError
from tinysleb.heal.course import Limits
from tinysleb.heal.run import HEAL_TOKENS
from tinysleb.heal.text import HealingText
from tinysleb.search.cuts import DEFAULT_KIND, removable
from tinysleb.search.gain import Gain, footprint
from tinysleb.search.pace import Pace, measure_pace
from tinysleb.sublayers import block_cut
from tinysleb.text.windows import DEFAULT_WINDOWS, WindowSource, read_windows

SHARES = 0.1, 0.2, 0.3


@dataclass(frozen=True)
class Preview(Gain):
    """What the model is without `removed` blocks, and the seconds that a search and healing would take, as
    they are by default; None if that could not be tried."""

    removed: int
    search_seconds: float | None
    healing_seconds: float | None


def hold_what_prune_holds(weights: Checkpoint, count: int, length: int) -> None:
    """Take the memory that `prune` has taken before it begins, or less would seem to do: its code is loaded
    with this module, its windows are read here, unless there is no tokenizer."""
    import tinysleb.commands.search_blocks  # noqa: F401

    with suppress(TinyslebError):
        read_windows(weights, WindowSource((), None, count, length), seed=0)


def previews(weights: Checkpoint, compute: Compute, length: int) -> Iterator[Preview]:
    """A preview for each of `SHARES`, of blocks that are as large as those that may go on average."""
    config = weights.config
    allowed, pace = removable(config.blocks, 1, 1), _pace(weights, compute, length)
    whole, cuts = footprint(weights), [block_cut(index) for index in allowed]
    for removed in sorted({round(share * config.blocks) for share in SHARES}):
        if 0 < removed <= len(allowed):
            gain = whole.gain(cuts, removed / len(cuts))
            search, healing = (None, None) if pace is None else _times(config, removed, length, pace)
            yield Preview(gain.bytes, gain.prompt_speed, gain.generation_speed, removed, search, healing)


def _pace(weights: Checkpoint, compute: Compute, length: int) -> Pace | None:
    with suppress(TinyslebError):
        return measure_pace(weights, compute, length)
    return None


def _times(config: ModelConfig, removed: int, length: int, pace: Pace) -> tuple[float, float]:
    """The seconds of a search and of healing."""
    text = HealingText((), None, HEAL_TOKENS, HEAL_TOKENS // 2, 0)
    search = search_stages(config, DEFAULT_WINDOWS * length, removed, DEFAULT_KIND, refined=False)
    healing = healing_stages(config, text, Limits(DISTILL_TOKENS, 60 * DISTILL_MINUTES))
    return seconds_of(search, pace), seconds_of(healing, pace)
