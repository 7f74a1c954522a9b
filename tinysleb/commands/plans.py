"""Finding a plan: in a file of its own, in a shortened model, or beside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinysleb.checkpoint.gguf_source import PLAN_KEY, plan_in_gguf
from tinysleb.errors import TinyslebError
from tinysleb.export.job import plan_beside
from tinysleb.formats.files import read_json_object
from tinysleb.formats.gguf_file import is_gguf, read_gguf
from tinysleb.plan import Plan, plan_from_json

PLAN_NAME = "plan.json"


def plan_of(path: Path) -> Plan:
    """The plan that a path stands for: a plan's own file, or a model that was shortened by one.

    Raises TinyslebError if there is none, or it is not as it should be.
    """
    if path.is_dir() or path.suffix == ".safetensors" or (path.is_file() and is_gguf(path)):
        where, values = plan_values(path)
        if not values:
            raise TinyslebError(
                f"{path} has no plan with it, as a model has that tinysleb shortened",
                "name the plan's own file",
            )
        return plan_from_json(values, where)
    return plan_from_json(read_json_object(path), path)


def plan_values(model: Path) -> tuple[Path, dict[str, Any]]:
    """What a model says of how it was shortened, and where it says so; empty if it does not.

    A GGUF says it under `tinysleb.plan` or, if something removed that, the file says it that was written
    beside it.
    """
    if model.is_dir() or model.suffix == ".safetensors":
        where = (model if model.is_dir() else model.parent) / PLAN_NAME
    elif values := plan_in_gguf(read_gguf(model)):
        return Path(f"{model} ({PLAN_KEY})"), values
    else:
        where = plan_beside(model)
    return where, read_json_object(where) if where.is_file() else {}
