"""The options of `tinysleb draft`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tinysleb.commands.options import NONE, HealingOptions, refuse_unused
from tinysleb.commands.outputs import output_beside
from tinysleb.commands.prune_options import HEALING_ONLY


@dataclass(frozen=True, kw_only=True)
class DraftOptions(HealingOptions):
    """The options of `draft`. `remove`: the most blocks to try without; `prompt_ratio`: None for no limit."""

    model: Path
    output: str | None
    remove: int | None
    keep_first: int
    keep_last: int
    windows: int | None
    window_length: int
    cut: str
    context: int
    draft_max: int
    prompt_ratio: float | None
    as_json: bool

    def __post_init__(self) -> None:
        """Raise a usage error for options that do not go together."""
        super().__post_init__()
        if self.heal == NONE:
            refuse_unused(self.given, HEALING_ONLY, "With --heal none nothing is healed")

    @cached_property
    def out(self) -> Path:
        """Where the draft goes; asked for once, since what lies there may change meanwhile."""
        return output_beside(self.output, self.model, self.type_name, "draft")
