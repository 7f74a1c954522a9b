"""The options of `tinysleb compare`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from tinysleb.commands.options import MeasuringOptions, refuse_several, refuse_unused
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.export.llama_cpp import is_installed
from tinysleb.measure.quants import file_type

TASK_OPTIONS = ("hellaswag", "winogrande", "multiple_choice", "choices")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasuringOptions):
    """The options of `compare`. The tasks' are files."""

    models: tuple[str, ...]
    baseline: str | None
    kl_divergence_base: Path | None
    hellaswag: Path | None
    winogrande: Path | None
    multiple_choice: Path | None
    choices: Path | None
    questions: int
    quants: str | None
    speed: bool
    show: bool
    markdown: bool

    def __post_init__(self) -> None:
        """Raise a usage error for options that do not go together."""
        known = self.kl_divergence_base is not None and self.kl_divergence_base.exists()
        self.check_text(needed=not known)
        if known:
            unused = ("texts", "token_file", "windows", "window_length")
            refuse_unused(self.given, unused, f"{self.kl_divergence_base} holds the windows")
        refuse_several(self.given, ("as_json", "markdown"))
        if self.baseline is not None and self.baseline not in self.models:
            raise click.UsageError(f"--baseline {self.baseline} is not one of the models.")
        if len(self.models) + len(self.types) < 2:
            raise click.UsageError("Give two models or more; the others are compared with the first.")
        if not self.tasks:
            refuse_unused(self.given, ("questions",), "Without a task there are no questions")
        if (self.speed or self.quants) and not is_installed():
            raise TinyslebError(
                "--speed and --quants need llama.cpp, which is not installed",
                f"run {pip_install('llamacpp')}",
            )

    @property
    def in_order(self) -> list[str]:
        """The models, the original first."""
        first = self.models[0] if self.baseline is None else self.baseline
        place = self.models.index(first)
        return [first, *self.models[:place], *self.models[place + 1 :]]

    @property
    def types(self) -> list[str]:
        """The types that the original is also made in. Raises TinyslebError for one that is not known."""
        names = [name.strip() for name in (self.quants or "").split(",") if name.strip()]
        for name in names:
            file_type(name)
        return names

    @property
    def tasks(self) -> dict[str, Path]:
        """The files of questions by the kind of task."""
        return {name: path for name in TASK_OPTIONS if (path := getattr(self, name)) is not None}
