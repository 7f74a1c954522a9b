"""What a person sees while a command runs: messages, progress, errors, and nothing that hides in them."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import click

from tinysleb.errors import TinyslebError

LONGEST_MESSAGE = 1500
"""Characters of a message; what a file holds may be a name of megabytes."""
SECONDS_BETWEEN_UPDATES = 0.2
SECONDS_BETWEEN_LINES = 30
"""Of progress, where it is written to a log."""
QUIET = "tinysleb.quiet"
"""Under this key, click's context says that nothing but results and errors is to be printed."""


class Failure(click.ClickException):
    """A problem the user can fix, as text: one line, and a hint."""

    def __init__(self, error: TinyslebError) -> None:
        super().__init__(printable(error.message))
        self.hint = printable(error.hint)

    def show(self, file: Any = None) -> None:
        """Print it to stderr."""
        click.echo(f"Error: {self.message}", err=True, file=file)
        if self.hint:
            click.echo(f"\nhint: {self.hint}", err=True, file=file)


def printable(text: str) -> str:
    """`text` in one line of bounded length, with no character that a terminal would act upon."""
    cut = text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


def print_line(text: str) -> None:
    """A result for people, on stdout."""
    click.echo(printable(text))


def print_json(value: Mapping[str, Any]) -> None:
    """A result for programs, on stdout."""
    click.echo(json.dumps(value, allow_nan=False))


def duration(seconds: float) -> str:
    """`12 s`, `3 min 05 s` or `1 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Work(NamedTuple):
    """How much of it a stage of a job is, in any unit, and after how many seconds it ends at the latest."""

    amount: float
    seconds: float = inf


class Console:
    """Messages on stderr, and below them one line of progress, rewritten in place where that is a terminal;
    elsewhere, it is a line of its own now and then.

    `stages`: of the job, whose time left is shown.
    `silent`: print nothing, as all processes but the first do, and all with `--quiet`.
    """

    def __init__(self, stages: Sequence[Work] = (Work(1),), silent: bool = False) -> None:
        self.silent = silent or _is_quiet()
        self.visible = sys.stderr.isatty() and not self.silent
        self.clock = JobClock(stages)
        self.shown, self.logged = -SECONDS_BETWEEN_UPDATES, time.monotonic()

    def say(self, line: str) -> None:
        """Print a message, above the line of progress."""
        if self.visible:
            click.echo("\r\033[K", err=True, nl=False)
        if not self.silent:
            click.echo(printable(line), err=True)

    def progress(self, what: str, done: float) -> None:
        """Show the fraction `done` of the current stage, 0 to 1. One that falls begins the next stage."""
        now = time.monotonic()
        left = self.clock.seconds_left(done, now)
        estimate = "" if left is None else f", about {duration(left)} left"
        line = f"{what}: {done:.0%}{estimate}"
        if self.visible and now - self.shown >= SECONDS_BETWEEN_UPDATES:
            self.shown = now
            fitting = printable(line)[: shutil.get_terminal_size().columns - 1]
            click.echo(f"\r\033[K{fitting}", err=True, nl=False)
        elif not self.visible and now - self.logged >= SECONDS_BETWEEN_LINES:
            self.logged = now
            self.say(line)

    def clear(self) -> None:
        """Remove the line of progress, before a result is printed."""
        if self.visible:
            click.echo("\r\033[K", err=True, nl=False)


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


class JobClock:
    """The time a job of several stages still needs: a clock for each stage, an estimate for all.

    Stages are taken to go at the pace of those before; the current one at its own, the more the further it
    is: one that computes in portions has much of the first behind it before anything is done. A stage that
    ends after a time has no pace.
    """

    FEWEST_DONE = 0.01
    """Of the first stage, before its pace says anything."""
    FORESEEN = 0.1
    """What is foreseen of a stage counts as much as so much of it being done, or as what it was seen in."""

    def __init__(self, stages: Sequence[Work]) -> None:
        self.stages = list(stages)
        self.stage = 0
        self.done: float | None = None
        self.stage_began, self.done_before = 0.0, 0.0
        self.paced = Work(0, 0)

    def seconds_left(self, done: float, now: float) -> float | None:
        """What is left at time `now`, in seconds, with the fraction `done` of the stage; None if unknown."""
        if self.done is None or done < self.done:
            if self.done is not None:
                self.paced = self._with_stage(now - self.stage_began)
                self.stage = min(self.stage + 1, len(self.stages) - 1)
            self.stage_began, self.done_before = now, done
        self.done = done
        elapsed, (amount, limit) = now - self.stage_began, self.stages[self.stage]
        left = self._stage_left(done, elapsed)
        if left is None:
            return None
        paced = self._with_stage(elapsed + left)
        if not paced.amount:
            paced = Work(amount * (1 - self.done_before), elapsed + left)
        pace = paced.seconds / paced.amount
        later = sum(min(pace * each.amount, each.seconds) for each in self.stages[self.stage + 1 :])
        return min(left, max(0.0, limit - elapsed)) + later

    def _stage_left(self, done: float, elapsed: float) -> float | None:
        """Seconds until all of the stage is done."""
        observed, amount = done - self.done_before, self.stages[self.stage].amount
        if self.paced.amount:
            foreseen = min(self.FORESEEN * amount, self.paced.amount)
            elapsed += foreseen / self.paced.amount * self.paced.seconds
            observed += foreseen / amount
        elif done < self.FEWEST_DONE or observed <= 0:
            return None
        return elapsed * (1 - done) / observed

    def _with_stage(self, seconds: float) -> Work:
        """The work whose pace is known, with the stage's, if that takes so long and tells a pace."""
        stage = self.stages[self.stage]
        if stage.seconds < inf:
            return self.paced
        amount = stage.amount * (1 - self.done_before)
        return Work(self.paced.amount + amount, self.paced.seconds + seconds)
