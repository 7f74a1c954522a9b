"""How far a distillation has come, in a file, so that it can be resumed: arrays alone, no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import replaced_file
from tinysleb.heal.change import parameters
from tinysleb.heal.course import Course
from tinysleb.heal.low_rank import factor_count
from tinysleb.heal.student import Student

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def state_bytes(config: ModelConfig) -> int:
    """The size of the file, at most."""
    now_two_moments_and_best = 4
    return now_two_moments_and_best * 4 * config.blocks * factor_count(config)


def save_state(path: Path, student: Student, course: Course, identity: str) -> None:
    """Write it, whole or not at all."""
    about = json.dumps({"identity": identity, **asdict(course)})
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in _arrays(student)}
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=about, **arrays)


def load_state(path: Path, student: Student, identity: str) -> Course:
    """Bring a new student to where the one that was saved had come.

    Raises TinyslebError if the file is damaged, or of another distillation, which `identity` tells.
    """
    student.keep_best()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["identity"] != identity:
                raise ValueError("it is of other blocks, or other text")
            course = Course(about["tokens"], about["seconds"], [tuple(each) for each in about["losses"]])
            for name, tensor in _arrays(student):
                with torch.no_grad():
                    tensor.copy_(torch.from_numpy(file[name]).view(tensor.shape))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, BadZipFile) as error:
        raise TinyslebError(
            f"{path} does not hold a state of this distillation ({type(error).__name__}: {error})",
            "delete it, to begin again",
        ) from error
    return course


def _arrays(student: Student) -> Iterator[tuple[str, Tensor]]:
    for index, change in student.changes.items():
        state = student.optimizers[index].state
        for number, factor in enumerate(parameters(change)):
            yield f"{index}.{number}.now", factor.detach()
            for moment in MOMENTS:
                yield f"{index}.{number}.{moment}", state[factor][moment]
        for number, factor in enumerate(parameters(student.best[index])):
            yield f"{index}.{number}.best", factor
