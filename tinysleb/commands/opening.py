"""Opening a model, and telling what a person should know of its files."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.gguf_source import gguf_weights
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console
from tinysleb.formats.gguf_file import GgufFile
from tinysleb.text.pre_tokenizers import check_pre_tokenizer


def opened(path: Path, console: Console, pre: str | None = None, file: GgufFile | None = None) -> Checkpoint:
    """As `open_as_given`; what is noteworthy about the files is said."""
    weights = open_as_given(path, pre, file)
    tell_remarks(weights, console)
    return weights


def open_as_given(path: Path, pre: str | None, file: GgufFile | None = None) -> Checkpoint:
    """Open a model, with the pre-tokenizer that `--pre` names; `file` is its header, if it was read already.

    Raises TinyslebError as `open_model` does, and for a pre-tokenizer that is not known.
    """
    if pre is not None:
        check_pre_tokenizer(pre)
    return open_model(path, pre) if file is None else gguf_weights(file, pre)


def tell_remarks(weights: Checkpoint, console: Console) -> None:
    """Say what is noteworthy about a model's files."""
    for remark in weights.remarks:
        console.say(remark)
