"""Healing as the commands ask for it: prepared before the slow work, done when the blocks are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console
from tinysleb.commands.options import HealingOptions
from tinysleb.compute.compute import Compute
from tinysleb.errors import TinyslebError
from tinysleb.heal.healed_weights import HealedTensors, grown_types
from tinysleb.heal.run import PreparedHealing, heal_plan, prepare_healing
from tinysleb.heal.text import HealingText
from tinysleb.plan import Plan

if TYPE_CHECKING:
    from tinysleb.commands.shortened import Heal


def prepare(weights: Checkpoint, options: HealingOptions, compute: Compute) -> PreparedHealing:
    """Read the text to heal on. Raises TinyslebError if the model cannot be healed."""
    tokens, sampled = options.heal_tokens, options.self_text
    sampled = tokens // 2 if sampled is None else sampled
    text = HealingText(options.texts, options.token_file, tokens, sampled, options.seed)
    return prepare_healing(weights, text, compute)


def prepare_unless(
    weights: Checkpoint, options: HealingOptions, compute: Compute, heal: bool | None, fit: str | None
) -> PreparedHealing | str:
    """As `prepare`, or why nothing will be healed.

    `heal`: whether it was asked for; None for whatever is possible. `fit`: the size the output must keep.
    Raises TinyslebError if healing was asked for and is impossible.
    """
    if heal is False:
        return "--no-heal"
    try:
        prepared = prepare(weights, options, compute)
        if fit and (recoded := grown_types(weights)):
            raise TinyslebError(f"healing would store {recoded} as a larger type, and exceed --fit")
    except TinyslebError as error:
        if heal:
            raise
        return error.one_line
    return prepared


def heal_with(
    weights: Checkpoint,
    prepared: PreparedHealing,
    compute: Compute,
    console: Console,
    runs_among: Sequence[int] | None = None,
) -> Heal:
    """What heals `weights` shortened by a plan; `runs_among` as in `heal_plan`."""

    def heal(plan: Plan, healed: HealedTensors) -> Plan:
        return heal_plan(
            weights, plan, prepared, compute.between_stages(), healed,
            runs_among=runs_among, say=console.say, progress=console.progress,
        )  # fmt: skip

    return heal
