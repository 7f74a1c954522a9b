"""`tinysleb prune --plan` and `--blocks`: no search. A GGUF is cut without torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.console import Console, print_json
from tinysleb.commands.dry_run import cut_line, print_dry_run
from tinysleb.commands.opening import opened
from tinysleb.commands.options import NONE, refuse_unused
from tinysleb.commands.prune_options import STOPPING, PruneOptions
from tinysleb.commands.shortened import (
    check_fitting,
    finish,
    refuse_unwritable,
)
from tinysleb.commands.stopping_rule import stopping_rule
from tinysleb.commands.stored_types import check_stored_type
from tinysleb.commands.summary import print_cut, print_shortened, what_next
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import COPIED_ONLY, block_count, write_unmodelled
from tinysleb.export.job import plan_beside
from tinysleb.formats.files import refuse_existing
from tinysleb.formats.gguf_file import GgufFile, is_gguf, read_gguf
from tinysleb.plan import Plan, plan_from_json, plan_to_json, read_plan
from tinysleb.search.stopping import finished_plan

if TYPE_CHECKING:
    from tinysleb.commands.shortened import Heal

COPYING = {"model", "output", "plan", "blocks", "unknown_arrays", "force", "as_json", "dry_run"}
"""The options that a model which is only copied can use."""


def apply_plan(options: PruneOptions) -> None:
    """Write the model without the blocks that a plan names, or without the first of them, or without those
    that are named on the command line."""
    console, file = Console(), None
    if options.unknown_arrays or is_gguf(options.model):
        file = read_gguf(options.model)
        if options.unknown_arrays or str(file.values().get("general.architecture")) in COPIED_ONLY:
            _cut_unmodelled(file, options, console)
            return
    weights = opened(options.model, console, options.pre, file)
    check_stored_type(weights, options.type_name)
    plan, source = _named_plan(options, weights.config.blocks)
    check_fitting(plan, source, weights, options.force, console)
    plan = _first_rounds(plan, source, weights, options)
    refuse_unwritable(
        weights, options.out, options, options.model, source,
        plan=plan, unknown_arrays=options.unknown_arrays,
    )  # fmt: skip
    heal = _prepare_heal(weights, options) if options.heal not in (None, NONE) else None
    if options.dry_run:
        healing = "not healed" if heal is None else f"then healed (--heal {options.heal})"
        print_dry_run(options.out, [cut_line(plan), healing], options.as_json)
        return
    write = partial(
        finish, weights, plan, options.out, options.unknown_arrays, heal, console, options.type_name
    )
    plan = write() if heal is None else _healing(write, options.out, console)
    console.clear()
    print_shortened(weights, plan, options.out, options.as_json, searched=False, console=console)


def _named_plan(options: PruneOptions, blocks: int) -> tuple[Plan, Path]:
    """The plan for a model of so many blocks, and where it came from, for messages."""
    if options.plan is not None:
        return read_plan(options.plan), options.plan
    source = Path("--blocks")
    try:
        return plan_from_json({"blocks": blocks, "removed": list(options.blocks or ())}, source), source
    except TinyslebError as error:
        raise TinyslebError(error.message, 'name blocks as 3,4,7-9, and sublayers as "F5 A6,A9"') from error


def _prepare_heal(weights: Checkpoint, options: PruneOptions) -> Heal:
    from tinysleb.commands.computing import choose_compute
    from tinysleb.commands.healing import heal_with, prepare
    from tinysleb.commands.work import console_works, prepared_stages

    compute = choose_compute(options)
    prepared = prepare(weights, options, compute, options.out)
    console = Console(console_works(prepared_stages(weights.config, prepared), weights.config))
    return heal_with(weights, prepared, compute, console)


def _healing(write: Callable[[], Plan], out: Path, console: Console) -> Plan:
    from tinysleb.commands.healing import forget_distillation
    from tinysleb.commands.interruption import told_what_is_kept

    with told_what_is_kept(out, console):
        plan = write()
    forget_distillation(out)
    return plan


def _first_rounds(plan: Plan, path: Path, weights: Checkpoint, options: PruneOptions) -> Plan:
    """The plan up to where the stopping rule that was given ends it; all of it if none was."""
    if not any(getattr(options, name) is not None for name in STOPPING):
        return plan
    rule = stopping_rule(options, weights, range(plan.blocks))
    finished = finished_plan(rule, plan)
    if finished is None and rule.increase is not None:
        return plan
    if finished is None:
        raise TinyslebError(
            f"{path} removes {len(plan.rounds)} blocks, which is too few for {rule.name}",
            "leave --plan out, to search for more",
        )
    return finished


def _cut_unmodelled(file: GgufFile, options: PruneOptions, console: Console) -> None:
    """Apply a plan to a GGUF whose family is not modelled: its bytes are copied, whatever they mean."""
    why = "This model's blocks are copied unread, and the plan is applied whole"
    usable = COPYING | ({"heal"} if options.heal == NONE else set())
    refuse_unused(options.given, [name for name in options.given if name not in usable], why)
    out, (plan, source) = options.out, _named_plan(options, block_count(file))
    for path in (out, plan_beside(out)):
        refuse_existing(path, options.force, file.path, source)
    if options.dry_run:
        print_dry_run(out, [cut_line(plan)], options.as_json)
        return
    for note in write_unmodelled(file, out, plan, options.unknown_arrays).notes:
        console.say(note)
    if options.as_json:
        print_json({"output": str(out), **plan_to_json(plan)})
        return
    print_cut(plan, out)
    for line in what_next(file.path, out):
        console.say(line)
