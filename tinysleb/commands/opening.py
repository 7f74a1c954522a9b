"""Opening a model, and telling what a person should know of its files."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console


def opened(path: Path, console: Console) -> Checkpoint:
    """As `open_model`; what is noteworthy about the files is said."""
    weights = open_model(path)
    tell_remarks(weights, console)
    return weights


def tell_remarks(weights: Checkpoint, console: Console) -> None:
    """Say what is noteworthy about a model's files."""
    for remark in weights.remarks:
        console.say(remark)
