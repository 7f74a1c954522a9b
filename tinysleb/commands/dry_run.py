"""`prune --dry-run`: what the same command without it would do. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinysleb.commands.console import print_json, print_line
from tinysleb.plan import Plan


def print_dry_run(out: Path, lines: Sequence[str], as_json: bool, seconds: float | None = None) -> None:
    """The output, and what would lead to it."""
    if as_json:
        print_json({"output": str(out), "would": list(lines), "seconds": seconds})
        return
    for line in lines:
        print_line(line)
    print_line(f"would write {out}; nothing was written")


def cut_line(plan: Plan) -> str:
    """What a plan leaves."""
    removed = ", ".join(map(str, plan.removed)) or "nothing"
    return f"would cut {removed}, which leaves {len(plan.kept)} of {plan.blocks} blocks"
