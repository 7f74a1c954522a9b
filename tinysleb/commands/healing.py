"""Healing as the commands ask for it: prepared before the slow work, done when the blocks are known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console
from tinysleb.commands.options import DISTILL_MINUTES, NONE, SOLVE, HealingOptions
from tinysleb.commands.outputs import kept_sample, unfinished_distillation
from tinysleb.commands.stored_types import in_types, wanted_types
from tinysleb.compute.compute import Compute
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import refuse_full_disk
from tinysleb.heal.course import Limits, stored_state
from tinysleb.heal.distilling_state import state_bytes
from tinysleb.heal.healed_weights import HealedTensors, grown_types, healing_file_bytes
from tinysleb.heal.repair import Distilling
from tinysleb.heal.run import PreparedHealing, heal_plan, prepare_healing
from tinysleb.heal.text import HealingText
from tinysleb.plan import Plan

if TYPE_CHECKING:
    from tinysleb.commands.shortened import Heal


ENDLESS = 2**62
"""Tokens, where the time alone ends a distillation."""


def forget_distillation(out: Path) -> None:
    """Delete the states of what led to `out`, and what was sampled for it."""
    state = unfinished_distillation(out)
    for path in (state, stored_state(state), kept_sample(out)):
        path.unlink(missing_ok=True)


def prepare(weights: Checkpoint, options: HealingOptions, compute: Compute, out: Path) -> PreparedHealing:
    """Read the text to heal on. Raises TinyslebError if the model cannot be healed as was asked for."""
    tokens, sampled = options.heal_tokens, options.self_text
    sampled = tokens // 2 if sampled is None else sampled
    text = HealingText(
        options.texts, options.token_file, tokens, sampled, options.seed, kept=kept_sample(out)
    )
    distilling = _distilling(options, out) if options.heal != SOLVE else None
    types = None if options.type_name is None else partial(wanted_types, options.type_name)
    prepared = prepare_healing(weights, text, compute, distilling, types)
    states = 0 if distilling is None else 2 * state_bytes(weights.config)
    stored = in_types(weights, options.type_name)
    refuse_full_disk(out, states + healing_file_bytes(stored, tokens, distilling is not None))
    return prepared


def _distilling(options: HealingOptions, out: Path) -> Distilling:
    """Raises TinyslebError if there is an unfinished one that is neither to be continued nor replaced."""
    state = unfinished_distillation(out)
    if state.exists() and not options.resume:
        if not options.force:
            raise TinyslebError(
                f"{state} holds a distillation that did not finish",
                "continue it with --resume, or start again with --force",
            )
        if not options.dry_run:
            forget_distillation(out)
    return Distilling(_limits(options), state)


def _limits(options: HealingOptions) -> Limits:
    """What was asked for; both defaults, if nothing was."""
    tokens, minutes = options.distill_tokens, options.minutes
    if "distill_tokens" in options.given:
        return Limits(tokens, inf if minutes is None else 60 * minutes)
    return Limits(tokens, 60 * DISTILL_MINUTES) if minutes is None else Limits(ENDLESS, 60 * minutes)


def prepare_unless(
    weights: Checkpoint, options: HealingOptions, compute: Compute, out: Path, fit: str | None
) -> PreparedHealing | str:
    """As `prepare` in the way that was asked for, or else by the closed form alone; or why nothing will be
    healed.

    `fit`: the size the output must keep. Raises TinyslebError if healing was asked for and is impossible.
    """
    if options.heal == NONE:
        return "--heal none"
    try:
        if fit and options.type_name is None and (recoded := grown_types(weights)):
            raise TinyslebError(f"healing would store {recoded} as a larger type, and exceed --fit")
        return prepare(weights, options, compute, out)
    except TinyslebError as error:
        if options.heal or options.asks_to_distill:
            raise
        reason = error.one_line
    try:
        return replace(prepare(weights, replace(options, heal=SOLVE), compute, out), undistilled=reason)
    except TinyslebError as error:
        return error.one_line


def healing_line(prepared: PreparedHealing) -> str:
    """What was prepared, for a dry run."""
    text = prepared.text
    names = [source.name for source in prepared.sources]
    names += [f"{text.sampled} tokens sampled from the model"] if text.sampled else []
    line = f"healing on {text.tokens} tokens: {', '.join(names)}"
    if prepared.distilling is None:
        return f"{line}; not distilled{': ' if prepared.undistilled else ''}{prepared.undistilled}"
    limits = prepared.distilling.limits
    most = [f"{limits.tokens} tokens"] if limits.tokens < ENDLESS else []
    most += [f"{limits.seconds / 60:g} minutes"] if limits.seconds < inf else []
    return f"{line}; then distilled on {', or for '.join(most)} at most"


def heal_with(
    weights: Checkpoint,
    prepared: PreparedHealing,
    compute: Compute,
    console: Console,
    runs_among: range | None = None,
    by_quality: bool = False,
) -> Heal:
    """What heals `weights` shortened by a plan; `runs_among` and `by_quality` as in `heal_plan`."""

    def heal(plan: Plan, healed: HealedTensors) -> Plan:
        return heal_plan(
            weights, plan, prepared, compute.between_stages(), healed,
            runs_among=runs_among, by_quality=by_quality, say=console.say, progress=console.progress,
        )  # fmt: skip

    return heal
