"""`tinysleb heal`: apply a plan and heal, without a search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console
from tinysleb.commands.healing import forget_distillation, heal_with, prepare
from tinysleb.commands.interruption import told_what_is_kept
from tinysleb.commands.opening import opened
from tinysleb.commands.options import HealingOptions
from tinysleb.commands.outputs import output_beside, sole_command
from tinysleb.commands.shortened import finish, read_fitting_plan, refuse_unwritable
from tinysleb.commands.stored_types import check_stored_type
from tinysleb.commands.summary import print_shortened
from tinysleb.commands.work import console_works, prepared_stages


@dataclass(frozen=True, kw_only=True)
class HealOptions(HealingOptions):
    """The options of `heal`."""

    model: Path
    plan: Path
    output: str
    as_json: bool

    @cached_property
    def out(self) -> Path:
        """Where the healed model goes."""
        return output_beside(self.output, self.model, self.type_name)


def heal(options: HealOptions) -> None:
    """Shorten a model by a plan, heal it, write it, and print what was written."""
    with sole_command(options.out):
        _heal(options, Console())


def _heal(options: HealOptions, console: Console) -> None:
    weights = opened(options.model, console, options.pre)
    check_stored_type(weights, options.type_name)
    plan = read_fitting_plan(options.plan, weights, options.force, console)
    refuse_unwritable(weights, options.out, options, options.model, options.plan, plan=plan)
    compute = choose_compute(options)
    prepared = prepare(weights, options, compute, options.out)
    console = Console(console_works(prepared_stages(weights.config, prepared), weights.config))
    heal = heal_with(weights, prepared, compute, console)
    with told_what_is_kept(options.out, console):
        plan = finish(weights, plan, options.out, None, heal, console, options.type_name)
    forget_distillation(options.out)
    console.clear()
    print_shortened(weights, plan, options.out, options.as_json, searched=False, console=console)
