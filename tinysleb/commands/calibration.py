"""What a search is calibrated on: text, and in the place of half of it what the model writes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console
from tinysleb.commands.draft_options import DraftOptions
from tinysleb.commands.outputs import kept_sample
from tinysleb.commands.prune_options import PruneOptions
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import give_back_freed
from tinysleb.errors import TinyslebError
from tinysleb.heal.run import PreparedHealing
from tinysleb.heal.text import HealingText, self_source
from tinysleb.plan import SELF_SOURCE
from tinysleb.text.windows import (
    Calibration,
    WindowSource,
    cut_windows,
    interleave,
    read_windows,
    with_others,
)


def text_calibration(weights: Checkpoint, options: PruneOptions | DraftOptions, refined: bool) -> Calibration:
    """Windows of the text that was given, or of the default text; if the search is to be `refined`, others to
    judge by as well. Raises TinyslebError if there are none."""
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    calibration = read_windows(weights, source, options.seed)
    return with_others(weights, source, calibration, options.seed) if refined else calibration


def own_text(
    calibration: Calibration, options: PruneOptions, prepared: PreparedHealing | str
) -> HealingText | None:
    """What the model is to write for the search, and for the healing behind it; None if nothing is to be
    sampled."""
    wanted = _half(calibration.tokens) + (0 if calibration.others is None else _half(calibration.others))
    if options.token_file is not None or options.self_text == 0 or not wanted:
        return None
    tokens = wanted * calibration.tokens.shape[1]
    text = HealingText(options.texts, None, tokens, tokens, options.seed, kept=kept_sample(options.out))
    if isinstance(prepared, PreparedHealing):
        text = replace(text, sampled=max(tokens, prepared.text.sampled))
    return text


def with_own_text(
    weights: Checkpoint,
    calibration: Calibration,
    text: HealingText | None,
    compute: Compute,
    console: Console,
) -> Calibration:
    """The same with what the model writes in the place of half of the windows; in a group of processes, the
    first one lets it write. If it cannot, the windows stay as they are, and the console says why."""
    if text is None:
        return calibration
    written = None
    if compute.group.rank == 0:
        try:
            source = self_source(
                weights, text, compute, console.say, partial(console.progress, "sampling text")
            )
            written = json.dumps(source.fit.flatten().tolist())
            give_back_freed()
        except TinyslebError as error:
            console.say(f"blocks are chosen on text that the model has not written: {error.one_line}")
    written = compute.group.same_text(written)
    if written is None:
        return calibration
    own = cut_windows(json.loads(written), calibration.tokens.shape[1])
    others = calibration.others
    return Calibration(
        _mixed(calibration.tokens, own),
        _with_own(calibration.source),
        None if others is None else _mixed(others, own[_half(calibration.tokens) :]),
    )


def announced(calibration: Calibration, text: HealingText | None) -> Calibration:
    """What a search is said to be calibrated on before anything is written."""
    return calibration if text is None else replace(calibration, source=_with_own(calibration.source))


def _with_own(source: str) -> str:
    return f"{source} and {SELF_SOURCE}"


def _half(windows: Tensor) -> int:
    """How many of windows `[n, T]` the model is to write."""
    return len(windows) // 2


def _mixed(windows: Tensor, own: Tensor) -> Tensor:
    """As many windows `[n, T]`, half of them replaced by the first of `own`, in turn with the others."""
    own = own[: _half(windows)]
    return interleave([windows[: len(windows) - len(own)], own]) if len(own) else windows
