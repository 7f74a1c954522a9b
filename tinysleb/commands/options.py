"""Options that several commands share, and which of them go together: what cannot be used is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

NONE, SOLVE, DISTILL = "none", "solve", "distill"
WAYS = NONE, SOLVE, DISTILL
"""How a shortened model can be healed: not at all, by the closed form, or by distillation after it."""
DISTILL_TOKENS, DISTILL_MINUTES = 262144, 20
"""How long to distil unless something else is asked for, whichever ends first: large models take the time."""
DISTILLING = ("distill_tokens", "minutes")
Given = Mapping[str, str]
"""The options on the command line: by their names in a dataclass, as a user writes them."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how to compute. `given`: the options on the command line."""

    memory: str
    device: str
    dtype: str
    threads: int | None
    given: Given = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(ComputeOptions):
    """On what to measure models, taken in order, and how to print it."""

    texts: tuple[Path, ...]
    token_file: Path | None
    pre: str | None
    windows: int | None
    window_length: int
    as_json: bool

    def __post_init__(self) -> None:
        """Raise a usage error if there is no text, or two kinds of it."""
        self.check_text(needed=True)

    def check_text(self, needed: bool) -> None:
        """The same, where text may be `needed` or not."""
        check_windows(self.given)
        if self.token_file is not None:
            refuse_unused(self.given, ("pre",), "With --tokens no text is read")
        if needed and not self.texts and self.token_file is None:
            raise click.UsageError("Give a text with --text, or windows with --tokens.")


@dataclass(frozen=True, kw_only=True)
class HealingOptions(ComputeOptions):
    """How to heal, on what, and in which type to store the result. `heal`: None for whatever is possible;
    `type_name`: None for the model's own; `dry_run`: leave what lies on the disk as it is."""

    heal: str | None
    distill_tokens: int
    minutes: float | None
    resume: bool
    force: bool
    texts: tuple[Path, ...]
    token_file: Path | None
    pre: str | None
    seed: int
    heal_tokens: int
    self_text: int | None
    type_name: str | None
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Raise a usage error for options that do not go together."""
        check_windows(self.given)
        if self.token_file is not None and self.self_text:
            refuse_unused(self.given, ("self_text",), "With --tokens no text is sampled")
        if self.self_text is not None and self.self_text > self.heal_tokens:
            most = f"--heal-tokens, {self.heal_tokens}"
            raise click.UsageError(f"--self-text {self.self_text} is more than all of {most}.")
        if self.heal in (NONE, SOLVE):
            why = f"With --heal {self.heal} nothing is distilled"
            refuse_unused(self.given, DISTILLING, why)

    @property
    def asks_to_distill(self) -> bool:
        """Whether the command line speaks of distillation."""
        return self.heal == DISTILL or any(name in self.given for name in DISTILLING)


def refuse_unused(given: Given, names: Iterable[str], why: str) -> None:
    """Raise a usage error if any of `names` was given."""
    if unused := [given[name] for name in names if name in given]:
        raise click.UsageError(f"{why}, so that {' and '.join(unused)} cannot be used.")


def refuse_several(given: Given, names: Iterable[str]) -> None:
    """Raise a usage error if more than one of `names` was given."""
    several = [given[name] for name in names if name in given]
    if len(several) > 1:
        raise click.UsageError(f"{' and '.join(several)} exclude each other: give one.")


def check_windows(given: Given) -> None:
    """Raise a usage error if windows come from a file of tokens, and other options speak of text."""
    refuse_several(given, ("texts", "token_file"))
    if "token_file" in given:
        refuse_unused(given, ("window_length",), "Windows from --tokens keep their length")
