"""What is said when somebody interrupts a command: what was kept, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinysleb.commands.console import Console
from tinysleb.commands.outputs import kept_sample, unfinished_distillation, unfinished_search
from tinysleb.commands.parsing import words_given
from tinysleb.heal.course import stored_state
from tinysleb.plan import read_plan


@contextmanager
def told_what_is_kept(out: Path, console: Console) -> Iterator[None]:
    """Say, if what follows is interrupted on its way to `out`, what is kept, and what continues."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            console.clear()
            console.say(_what_continues(_kept(out)))
        raise


def _what_continues(kept: list[str]) -> str:
    if not kept:
        return "stopped; nothing is kept"
    words = [word for word in words_given() if word != "--resume"]
    command = shlex.join(["tinysleb", *words, "--resume"])
    return f"stopped; kept {' and '.join(kept)}; this continues: {command}"


def _kept(out: Path) -> list[str]:
    kept: list[str] = []
    if (search := unfinished_search(out)).exists():
        rounds = len(read_plan(search).rounds)
        kept.append(f"{rounds} {'round' if rounds == 1 else 'rounds'} of the search in {search}")
    if kept_sample(out).exists():
        kept.append("the text that the model wrote")
    state = unfinished_distillation(out)
    kept += [f"the distillation in {path}" for path in (state, stored_state(state)) if path.exists()]
    return kept
