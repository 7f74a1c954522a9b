"""Text into calibration windows: tokens `[n, T]`, int64."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import valid_text
from tinysleb.formats.wrong_file import check_no_pointer
from tinysleb.text.given_text import GivenText, PlainText, given_texts
from tinysleb.text.long_text import PartEncoder, Tokens
from tinysleb.text.tokenizer import Tokenizer, open_tokenizer

DEFAULT_WINDOWS = 16
WINDOW_LENGTH = 256
LONG_TEXT = 4 << 20
"""Bytes; a sample of more text than this is drawn without reading it all."""
STRETCH = 1 << 16
"""Bytes of a long text that windows are drawn from at a time."""
DEFAULT_SOURCE = "Python's own documentation (pydoc_data.topics)"


@dataclass(frozen=True)
class WindowSource:
    """Where windows come from: texts or a token file, how many (None: as many as usual), how long."""

    texts: Sequence[Path]
    token_file: Path | None
    count: int | None
    length: int


@dataclass(frozen=True)
class Calibration:
    """Windows `[n, T]`, where they came from, and a hash of their tokens; `others` `[m, T]` of the same
    texts, to judge by, if there are any."""

    tokens: Tensor
    source: str
    others: Tensor | None = None

    @property
    def sha256(self) -> str:
        """Identifies the windows, whatever text and tokenizer they came from."""
        return hashlib.sha256(self.tokens.to(torch.int32).numpy().tobytes()).hexdigest()


def windows(
    weights: Checkpoint,
    texts: Sequence[Path] = (),
    *,
    count: int | None = None,
    length: int = WINDOW_LENGTH,
    seed: int | None = 0,
) -> Tensor:
    """Windows `[n, T]` of text files, or of the default text: a sample, or with `seed` None those in order.

    Raises TinyslebError if a text cannot be read, or is too short for one window.
    """
    return read_windows(
        weights, WindowSource([Path(text) for text in texts], None, count, length), seed
    ).tokens


def read_windows(weights: Checkpoint, windows: WindowSource, seed: int | None) -> Calibration:
    """The windows asked for: a seeded sample, or without a seed all of them, in order.

    Windows are never longer than the model's context. Raises TinyslebError if there are none.
    """
    config = weights.config
    if windows.token_file is not None:
        found = from_token_file(windows.token_file, config.vocab_size, windows.count)
        if (length := found.tokens.shape[1]) > config.context_length:
            raise TinyslebError(
                f"{windows.token_file} has windows of {length} tokens, "
                f"the model's context has {config.context_length}"
            )
        return found
    count = windows.count or (DEFAULT_WINDOWS if seed is not None else None)
    length = min(windows.length, config.context_length)
    tokenizer = open_tokenizer(weights)
    opened = given_texts(weights, tokenizer)
    return from_text(tokenizer, windows.texts, length, count, seed, config.vocab_size, opened)


def with_others(
    weights: Checkpoint, windows: WindowSource, calibration: Calibration, seed: int
) -> Calibration:
    """The same with as many `others`, or all there are; none if windows come from a token file."""
    if windows.token_file is not None:
        return calibration
    known, count = set(map(tuple, calibration.tokens.tolist())), len(calibration.tokens)
    more = read_windows(weights, replace(windows, count=2 * count), seed).tokens
    others = [row for row in more.tolist() if tuple(row) not in known][:count]
    return replace(calibration, others=torch.tensor(others)) if others else calibration


def default_text() -> str:
    """The offline default: about 465 kB of English prose and code that comes with CPython."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def from_text(
    tokenizer: Tokenizer,
    files: Sequence[Path],
    length: int,
    count: int | None,
    seed: int | None,
    vocab_size: int,
    opened: Callable[[Path], GivenText] = PlainText,
) -> Calibration:
    """Windows of the files' text, each `opened` (the default text if there are none).

    The texts are tokenised one by one and cut into consecutive windows of `length` tokens; a
    remainder shorter than that is dropped. With a seed, `count` of them in random order; without, the first
    `count`; all if `count` is None.

    A sample of more than `LONG_TEXT` bytes is drawn without reading all of it: the texts are divided into
    stretches of `STRETCH` bytes, or 16 a token if that is more; `random.Random(seed)` puts these into an
    order, and draws a few windows from each in turn, as many as all would have to give if half of them gave
    any. If that is not enough, it draws anew, from each stretch as many as are still missing.

    Raises TinyslebError if there is not even one window, or if the tokenizer gives tokens that the model has
    no row for.
    """
    source = ", ".join(valid_text(path.name) for path in files) or DEFAULT_SOURCE
    encoder, given = PartEncoder(tokenizer), [opened(path) for path in files]
    if seed is not None and count is not None and sum(text.size() for text in given) > LONG_TEXT:
        windows = _sample_stretches(encoder, given, source, length, count, random.Random(seed))
        check_vocabulary(windows, source, vocab_size)
        return Calibration(windows, source + _broken_bytes(given))
    most = count if seed is None else None
    texts = [text.parts() for text in given] if files else [iter([default_text()])]
    windows = _consecutive(encoder, texts, length, most, source)
    check_vocabulary(windows, source, vocab_size)
    source += _broken_bytes(given)
    if seed is None:
        return Calibration(windows[:count], source)
    order = list(range(len(windows)))
    random.Random(seed).shuffle(order)
    return Calibration(windows[order[:count]], source)


def _broken_bytes(given: Sequence[GivenText]) -> str:
    count = sum(text.replaced for text in given)
    return f" (bytes that are not UTF-8: {count})" if count else ""


def _consecutive(
    encoder: PartEncoder, texts: Sequence[Iterator[str]], length: int, most: int | None, source: str
) -> Tensor:
    """Windows `[n, length]` of texts in order, `most` of them at most; what is not needed is not read."""
    found: list[Tensor] = []
    longest = taken = 0
    for parts in texts:
        tokens = _first_tokens(encoder.encode(parts), None if most is None else (most - taken) * length)
        found.append(cut_windows(tokens, length))
        longest, taken = max(longest, len(tokens)), taken + len(found[-1])
    if not taken:
        raise TinyslebError(
            f"{source}: {longest} tokens are too few for one window of {length}",
            "give more text, or shorter windows",
        )
    return torch.cat(found)


def _first_tokens(parts: Iterator[Tokens], most: int | None) -> Tokens:
    """The first `most` tokens, or all."""
    found: list[Tokens] = []
    left = most
    while (left is None or left > 0) and (part := next(parts, None)) is not None:
        found.append(part[:left])
        left = None if left is None else left - len(part)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int32)


def _sample_stretches(
    encoder: PartEncoder,
    texts: Sequence[GivenText],
    source: str,
    length: int,
    count: int,
    generator: random.Random,
) -> Tensor:
    """`count` windows of long texts, as `from_text` says."""
    step = max(STRETCH, 16 * length)
    stretches = [
        (text, start, min(start + step, size))
        for text, size in ((text, text.size()) for text in texts)
        for start in range(0, size, step)
    ]
    order = generator.sample(stretches, len(stretches))
    most = -(-2 * count // len(stretches))
    found: list[Tensor] = []
    for each in (most, step):
        found, left, more = [], count, False
        for text, start, stop in order:
            windows = cut_windows(encoder.plain(text.between(start, stop)), length)
            found.append(windows[generator.sample(range(len(windows)), min(each, left, len(windows)))])
            left -= len(found[-1])
            more = more or len(windows) > each
            if not left:
                return torch.cat(found)
        if not more:
            break
    if not any(map(len, found)):
        raise TinyslebError(
            f"{source}: no {step} bytes of it have the {length} tokens of one window",
            "give other text, or shorter windows",
        )
    return torch.cat(found)


def check_vocabulary(windows: Tensor, source: str, vocab_size: int) -> None:
    """Raise TinyslebError if the model has no row for a token that its tokenizer gives."""
    if len(windows) and (largest := int(windows.max())) >= vocab_size:
        raise TinyslebError(
            f"the tokenizer gives token {largest} for {source}; the model's vocabulary has {vocab_size} rows",
            "the tokenizer belongs to another model",
        )


def from_token_file(path: Path, vocab_size: int, count: int | None = None) -> Calibration:
    """Windows from an int32 `[n, T]` array in a .npy file, as they are (the first `count`)."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # which allocates nothing for what is not there
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        if path.is_file():
            check_no_pointer(path)
        raise TinyslebError(f"cannot read {path} as a .npy array: {error}") from error
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise TinyslebError(
            f"{path} should hold whole numbers [windows, tokens], found {array.dtype} {list(array.shape)}"
        )
    if array.shape[0] < 1 or array.shape[1] < 2:
        raise TinyslebError(f"{path} has the shape {list(array.shape)}; a window needs two tokens")
    if array.min() < 0 or array.max() >= vocab_size:
        outside = array.min() if array.min() < 0 else array.max()
        raise TinyslebError(f"{path} holds token {outside}; the vocabulary has 0 … {vocab_size - 1}")
    return Calibration(torch.from_numpy(array[:count].astype(np.int64)), valid_text(path.name))


def cut_windows(tokens: Sequence[int] | Tokens, length: int) -> Tensor:
    """Consecutive windows `[n, length]`; what is left at the end is dropped."""
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length], dtype=torch.int64).view(count, length)


def interleave(windows: Sequence[Tensor]) -> Tensor:
    """Windows of all sources in turn, so that the first few have some of each."""
    turns = torch.cat([(torch.arange(len(some)) + 0.5) / len(some) for some in windows])
    return torch.cat(list(windows))[turns.argsort(stable=True)]
