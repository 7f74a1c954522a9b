"""The windows that healing is fitted to: each text a source of its own, and text the model writes itself.

Healing on one kind of text harms the others, so the sources are mixed, and each holds windows back to measure
what healing does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor

from tinysleb import __version__
from tinysleb.checkpoint.fingerprint import fingerprint
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.compute.compute import Compute, scaled
from tinysleb.compute.memory import give_back_freed, sampling_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.heal.kept_sample import load_sample, save_sample
from tinysleb.heal.prompts import self_prompts
from tinysleb.model.sampling import load_resident, sample
from tinysleb.plan import SELF_SOURCE
from tinysleb.text.given_text import given_texts
from tinysleb.text.library import code, docstrings, library_files, library_windows
from tinysleb.text.tokenizer import Tokenizer, open_tokenizer
from tinysleb.text.windows import (
    WINDOW_LENGTH,
    Calibration,
    check_vocabulary,
    from_text,
    from_token_file,
)

HELD_BACK = 16
"""Windows of a source that it is evaluated on; never more than a quarter of them."""
CHECKED = 8
"""One window in so many decides whether a block is better off with its old weights."""
SAMPLED_LENGTH = 128
"""Tokens of a sampled sequence, so that windows hold more than one: more sequences have more topics."""
PORTION = 128
"""Windows that are sampled at once, at most: half as many take 1.2 times as long, a quarter 1.6 times."""
LEAST_PORTION = 16
"""Fewer at once would take several times as long."""
LIBRARY = (("docstrings of Python's library", docstrings), ("code of Python's library", code))


@dataclass(frozen=True)
class Source:
    """Windows of one kind of text: to fit `[n, T]`, and held back `[m, T]`."""

    name: str
    fit: Tensor
    held_back: Tensor

    @property
    def sha256(self) -> str:
        """Identifies the windows that were fitted."""
        return Calibration(self.fit, self.name).sha256


@dataclass(frozen=True)
class HealingText:
    """What to heal on: `tokens` in all, `sampled` of them by the model itself, the rest from texts.

    Windows are of `length` tokens, or as in `token_file`; `seed` chooses them. `kept`: the file that keeps
    what was sampled, if there is to be one.
    """

    texts: Sequence[Path]
    token_file: Path | None
    tokens: int
    sampled: int
    seed: int
    length: int = WINDOW_LENGTH
    kept: Path | None = None


def text_sources(weights: Checkpoint, text: HealingText) -> list[Source]:
    """A source for each text or for the token file, with equal shares; without either, the default texts.

    Raises TinyslebError for a text without two windows.
    """
    vocab_size = weights.config.vocab_size
    if text.token_file is not None:
        calibration = from_token_file(text.token_file, vocab_size)
        length = calibration.tokens.shape[1]
        return [_source(calibration, max(1, (text.tokens - text.sampled) // length))]
    tokenizer = open_tokenizer(weights)
    length = window_length(weights, text)
    count = max(1, (text.tokens - text.sampled) // length)
    if not text.texts:
        return _default_sources(tokenizer, count, length, text.seed, vocab_size)
    opened, share = given_texts(weights, tokenizer), max(1, count // len(text.texts))
    most = max(4 * HELD_BACK, HELD_BACK + share)
    return [
        _source(from_text(tokenizer, [path], length, most, text.seed, vocab_size, opened), share)
        for path in text.texts
    ]


def _default_sources(
    tokenizer: Tokenizer, count: int, length: int, seed: int, vocab_size: int
) -> list[Source]:
    """Python's documentation, and its library's docstrings and code if they are there: equal shares, or more
    docstrings where the documentation is too short; never more code than prose."""
    kinds = LIBRARY if library_files() else ()
    topics = from_text(tokenizer, [], length, None, seed, vocab_size)
    sources = [_source(topics, max(1, count // (1 + len(kinds))))]
    for index, (name, kind) in enumerate(kinds):
        taken = sum(len(source.fit) for source in sources)
        share = (count - taken) // (len(kinds) - index)
        share = min(share, taken) if kind is code else share
        fit, held_back = library_windows(tokenizer, kind, length, share, min(HELD_BACK, share), seed)
        check_vocabulary(torch.cat([fit, held_back]), name, vocab_size)
        if len(fit) and len(held_back):
            sources.append(Source(name, fit, held_back))
    return sources


def split_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows `[n, T]` to fit, and those of them that check the result, taken evenly."""
    checked = torch.arange(len(windows)) % CHECKED == CHECKED - 1
    if not checked.any():
        checked[-1] = True
    if checked.all():
        raise TinyslebError(
            "healing needs at least two windows of text", "give more text, or raise --heal-tokens"
        )
    return windows[~checked], windows[checked]


def window_length(weights: Checkpoint, text: HealingText) -> int:
    """Tokens in a window of text."""
    return min(text.length, weights.config.context_length)


def _source(calibration: Calibration, count: int) -> Source:
    windows = calibration.tokens
    if len(windows) < 2:
        raise TinyslebError(
            f"{calibration.source} has one window of {windows.shape[1]} tokens; healing needs one more to "
            "check by",
            "give more text",
        )
    held = min(HELD_BACK, max(1, len(windows) // 4))
    return Source(calibration.source, windows[held : held + count], windows[:held])


def self_source(
    weights: Checkpoint,
    text: HealingText,
    compute: Compute,
    say: Callable[[str], None],
    progress: Callable[[float], None],
) -> Source:
    """What the model writes, or has written in the file that keeps it; what is missing there is added.

    Raises TinyslebError as `self_windows` does.
    """
    fitted = max(1, text.sampled // window_length(weights, text))
    held = min(HELD_BACK, max(1, fitted // 4))
    wanted = fitted + held
    portion = -(-wanted // -(-wanted // PORTION))
    identity = f"{__version__} {fingerprint(weights)} {text.seed} {text.length} {compute.dtype}"
    kept = None if text.kept is None else load_sample(text.kept, identity)
    windows = torch.zeros(0, window_length(weights, text), dtype=torch.int64) if kept is None else kept
    start = len(windows)
    if start < wanted:
        say(f"sampling {text.sampled} tokens from the model")
    portions = self_windows(
        weights, text, compute, say, lambda done: progress(min(1.0, (start + done) / wanted)), portion, start
    )
    while len(windows) < wanted:
        windows = torch.cat([windows, next(portions)])
        if text.kept is not None:
            save_sample(text.kept, windows, identity)
    return Source(SELF_SOURCE, windows[held:wanted], windows[:held])


def self_windows(
    weights: Checkpoint,
    text: HealingText,
    compute: Compute,
    say: Callable[[str], None],
    progress: Callable[[float], None] = lambda _windows: None,
    portion: int = PORTION,
    start: int = 0,
) -> Generator[Tensor]:
    """Windows that the model writes, from number `start` on, without end: int64 `[n, T]`, `portion` of them
    at a time or fewer where memory is short. The model is in memory until the iterator is closed.

    A window depends on the seed and on how many came before it, not on the size of a portion, as far as
    matrix products of other sizes round alike. `progress` is given the windows done, with a fraction, and
    `say` why there are no chats, if there are none. Raises TinyslebError if the model has no tokenizer, or
    does not fit into memory.
    """
    window = window_length(weights, text)
    in_a_window, length = _sequences(window)
    portion = _portion_that_fits(weights, portion, (in_a_window, length), compute)
    prompts = islice(self_prompts(weights, text.seed, say), start * in_a_window, None)
    model = load_resident(weights, compute.dtype, compute.device)
    for first in count(start, portion):
        batch = list(islice(prompts, portion * in_a_window))
        told = scaled(progress, first - start, first - start + portion)
        sequences = sample(model, batch, length, seed=text.seed, first=first * in_a_window, progress=told)
        give_back_freed()
        yield sequences.view(portion, -1)[:, :window]


def least_bytes(weights: Checkpoint, text: HealingText, item_bytes: int) -> int:
    """What `self_windows` takes with the fewest windows at a time, matrices of `item_bytes` a value."""
    in_a_window, length = _sequences(window_length(weights, text))
    return sampling_bytes(weights.config, LEAST_PORTION * in_a_window, length, item_bytes)


def _sequences(window: int) -> tuple[int, int]:
    """How many sequences make up a window of so many tokens, and the length of each."""
    in_a_window = max(1, window // SAMPLED_LENGTH)
    return in_a_window, -(-window // in_a_window)


def _portion_that_fits(weights: Checkpoint, portion: int, shape: tuple[int, int], compute: Compute) -> int:
    """`portion` windows of `shape` `(sequences, tokens in each)`, halved until they fit."""
    in_a_window, length = shape
    while True:
        least = sampling_bytes(weights.config, portion * in_a_window, length, compute.dtype.itemsize)
        if compute.memory.resident + least <= compute.memory.total:
            return portion
        if portion <= LEAST_PORTION:
            break
        portion = max(LEAST_PORTION, portion // 2)
    raise TinyslebError(
        f"the model does not fit into {format_bytes(compute.memory.total)} of memory, "
        "and sampling would read it once for every token",
        f"--memory {format_bytes(compute.memory.resident + least)} would do",
    )
