"""Where an output goes: under the name that was given, or in the folder that was given, under one of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinysleb.errors import TinyslebError
from tinysleb.export.job import plan_beside
from tinysleb.formats.output_lock import sole_writer
from tinysleb.formats.wrong_file import SUFFIXES
from tinysleb.heal.course import stored_state

FOLDER_ENDS = tuple(filter(None, (os.sep, os.altsep)))
OTHER_SUFFIXES = {*SUFFIXES, ".safetensors", ".json"}
"""What is neither the name of a GGUF nor that of a folder."""


def default_output(model: Path, type_name: str | None = None, what: str = "sleb") -> Path:
    """The model's name with the type that it gets, if any, and `what` it is, in the current directory; of the
    same kind as the model."""
    end = f"-{type_name}-{what}" if type_name else f"-{what}"
    if model.is_dir():
        return Path(f"{model.resolve().name}{end}")
    return Path(f"{model.stem}{end}{model.suffix if model.suffix == '.gguf' else ''}")


def output_beside(given: str | None, model: Path, type_name: str | None, what: str = "sleb") -> Path:
    """Where the shortened `model` goes, which is of the model's kind: by default to `default_output`, or to
    that in the folder that is given.

    Raises TinyslebError for a name that other files have.
    """
    default = default_output(model, type_name, what)
    if given is None:
        return default
    is_gguf = model.is_file() and model.suffix != ".safetensors"
    return output_in(given, default, is_gguf)


def output_in(given: str, default: Path, is_gguf: bool) -> Path:
    """The output that is given, or `default` in it if it is a folder: for a folder of weights, only if no
    other lies there, which is to be replaced."""
    path = Path(given)
    inside = path.is_dir() and (is_gguf or not _holds_model(path))
    if inside or (is_gguf and given.endswith(FOLDER_ENDS)):
        return path / default.name
    if path.suffix in (OTHER_SUFFIXES if is_gguf else {*OTHER_SUFFIXES, ".gguf"}):
        raise _wrong_name(path, is_gguf)
    return path


def _wrong_name(path: Path, is_gguf: bool) -> TinyslebError:
    if is_gguf:
        return TinyslebError(
            f"the output is a GGUF, and {path} is not the name of one", f"call it {path.with_suffix('.gguf')}"
        )
    folder = path.with_suffix("")
    return TinyslebError(
        f"the output is a folder like MODEL, and {path} is not the name of one",
        f"call it {folder}; tinysleb export {folder} --gguf makes a GGUF of it",
    )


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").exists() or any(folder.glob("*.safetensors"))


def unfinished_search(out: Path) -> Path:
    """Where a search leaves its rounds until `out` is written."""
    return out.with_name(out.name + ".unfinished.json")


def unfinished_distillation(out: Path) -> Path:
    """Where a distillation leaves its state until `out` is written."""
    return out.with_name(out.name + ".unfinished.npz")


def kept_sample(out: Path) -> Path:
    """Where the text that the model wrote is kept until `out` is written."""
    return out.with_name(out.name + ".unfinished.sample.npz")


@contextmanager
def sole_command(out: Path) -> Iterator[None]:
    """Let no other process write `out`, nor what leads to it. Raises TinyslebError if one does."""
    state = unfinished_distillation(out)
    beside = [plan_beside(out)] if out.suffix == ".gguf" else []
    with sole_writer(out, [*beside, unfinished_search(out), state, stored_state(state), kept_sample(out)]):
        yield
