"""What `tinysleb draft` prints: what the draft is worth and how it is used, or why there is none."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tinysleb.commands.console import print_json, print_line
from tinysleb.commands.draft_options import DraftOptions
from tinysleb.commands.parsing import words_given
from tinysleb.formats.units import format_bytes
from tinysleb.plan import Plan
from tinysleb.search.speculative import Draft

SMALLER, MUCH_SMALLER = "q4_0", 0.8
"""A type to store a draft in, and what of its cost is to be left then, at most, for that to be said."""
SHOWN = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
"""Lengths in the table, of those that were looked at."""


@dataclass(frozen=True)
class Result:
    """What was found: the `plan` of the best draft, what that is worth, whether it was `written`, on how many
    tokens it was `judged`, what each number of cuts that was tried is worth, how many bytes a token the
    original would have to read so that one of these pays, and how many it reads; what a token of the draft
    would cost in `SMALLER`, if it can be stored so."""

    plan: Plan
    draft: Draft
    written: bool
    judged: int
    tried: Mapping[int, Draft]
    needed_bytes: float
    read_bytes: int
    smaller_cost: float | None


def tried_line(plan: Plan, draft: Draft) -> str:
    """What a draft that was tried is worth."""
    count, best = len(plan.rounds), draft.best
    return (
        f"without {count} of {plan.blocks} blocks: {draft.acceptance:.0%} accepted, at {draft.cost:.0%} of "
        f"the cost; {best.speedup:.2f} times as fast with {best.length} at a time"
    )


def print_result(result: Result, options: DraftOptions) -> None:
    """All of it, for people or as JSON."""
    if options.as_json:
        print_json(_as_json(result, options))
        return
    draft = result.draft
    removed = ", ".join(map(str, result.plan.removed))
    what = options.out if result.written else "the best draft"
    print_line(f"{what}: {len(result.plan.kept)} of {result.plan.blocks} blocks, without {removed}")
    print_line(
        f"{draft.acceptance:.1%} of its tokens are accepted, of {result.judged}; each costs {draft.cost:.1%} "
        f"of one of {options.model}"
    )
    for line in _table(draft):
        print_line(line)
    lines = _use(result, options) if result.written else ()
    for line in (*(() if draft.pays else _why_not(result, options)), *lines):
        print_line(line)


def _use(result: Result, options: DraftOptions) -> Iterator[str]:
    draft, best = result.draft, result.draft.best
    if draft.pays:
        yield (
            f"best: {best.length} at a time, {best.speedup:.2f} times as fast as {options.model} alone; it "
            f"pays where a prompt is read {draft.least_prompt_ratio:.1f} times as fast as text is generated"
        )
    yield from map(shlex.join, _commands(result, options))


def _table(draft: Draft) -> list[str]:
    lengths = {*SHOWN, draft.best.length}
    rows = [("drafted at a time", "tokens a round", "expected speed-up")]
    rows += [
        (str(each.length), f"{each.tokens:.2f}", f"{each.speedup:.2f}")
        for each in draft.draftings
        if each.length in lengths
    ]
    return ["  ".join(cell.rjust(len(head)) for cell, head in zip(row, rows[0], strict=True)) for row in rows]


def _why_not(result: Result, options: DraftOptions) -> Iterator[str]:
    draft, best = result.draft, result.draft.best
    yield f"it does not pay: {options.model} is {best.speedup:.2f} times as fast with it as alone, at best"
    if draft.most_cost > 0:
        yield f"with as many accepted, one pays that costs less than {draft.most_cost:.0%} of its original"
    if math.isfinite(result.needed_bytes):
        needed = format_bytes(round(result.needed_bytes))
        yield (
            f"with as many accepted, and larger blocks, it pays where {needed} are read for a token; "
            f"{options.model} reads {format_bytes(result.read_bytes)}"
        )
    else:
        yield "no size of the blocks changes that: too many of them have to stay"
    if result.smaller_cost is not None and result.smaller_cost < MUCH_SMALLER * draft.cost:
        yield f"with --type {SMALLER}, it costs {result.smaller_cost:.0%}"
    if not result.written:
        words = [word for word in words_given() if word not in ("--resume", "--force")]
        command = shlex.join(["tinysleb", *words, "--resume", "--force"])
        yield f"nothing was written; this does so all the same, without another search: {command}"


def _commands(result: Result, options: DraftOptions) -> Iterator[list[str]]:
    """What to run next."""
    model, out = str(options.model), str(options.out)
    if options.model.suffix != ".gguf":
        yield ["tinysleb", "export", model, "--gguf", "model.gguf"]
        yield ["tinysleb", "export", out, "--gguf", "draft.gguf", "--draft", "model.gguf"]
        model, out = "model.gguf", "draft.gguf"
    length = str(result.draft.best.length)
    drafting = ["-m", model, "-md", out, "--spec-type", "draft-simple", "--spec-draft-n-max", length]
    yield ["llama-server", *drafting]
    yield ["llama-speculative-simple", *drafting, "--temp", "0", "-n", "128", "-p", "Once upon a time"]


def _as_json(result: Result, options: DraftOptions) -> dict[str, Any]:
    draft = result.draft
    return {
        "output": str(options.out) if result.written else None,
        "pays": draft.pays,
        "removed": list(result.plan.removed),
        "blocks": result.plan.blocks,
        "judged_tokens": result.judged,
        **_worth(draft),
        "most_cost": draft.most_cost,
        "least_prompt_ratio": _finite(draft.least_prompt_ratio),
        "read_bytes": result.read_bytes,
        "needed_bytes": _finite(result.needed_bytes),
        "lengths": [asdict(each) | {"speedup": each.speedup} for each in draft.draftings],
        "tried": [{"cuts": count, **_worth(each)} for count, each in sorted(result.tried.items())],
        "commands": [shlex.join(words) for words in _commands(result, options)] if result.written else [],
    }


def _worth(draft: Draft) -> dict[str, float]:
    best = draft.best
    return {
        "acceptance": draft.acceptance,
        "cost": draft.cost,
        "best_length": best.length,
        "speedup": best.speedup,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
