"""How long a distillation may take, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path


@dataclass
class Course:
    """How far it has come: tokens seen, seconds taken, and losses (mean divergence from the original in nats
    per token, on windows held back) after so many tokens."""

    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        """The lowest loss, and after how many tokens it was reached."""
        return min(self.losses, key=lambda each: each[1])


@dataclass(frozen=True)
class Limits:
    """When distillation ends: after so many tokens, or so many seconds if that comes first."""

    tokens: int
    seconds: float = inf

    def part(self, fraction: float) -> Limits:
        """The limits of a part of the work."""
        return Limits(round(fraction * self.tokens), fraction * self.seconds)

    def done(self, course: Course) -> float:
        """The fraction done, 0 to 1; it depends on the time only where that runs out first."""
        return min(1.0, max(course.tokens / self.tokens, course.seconds / self.seconds))


def stored_state(state: Path) -> Path:
    """Where the distillation of what is stored leaves its state, beside that of the one before."""
    return state.with_suffix(f".stored{state.suffix}")
