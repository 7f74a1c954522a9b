"""`tinysleb heal`: apply a plan and heal, without a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console
from tinysleb.commands.healing import forget_distillation, heal_with, prepare
from tinysleb.commands.opening import opened
from tinysleb.commands.options import HealingOptions
from tinysleb.commands.shortened import finish, print_shortened, read_fitting_plan, refuse_unwritable
from tinysleb.commands.stored_types import check_stored_type


@dataclass(frozen=True, kw_only=True)
class HealOptions(HealingOptions):
    """The options of `heal`."""

    model: Path
    plan: Path
    output: Path
    as_json: bool


def heal(options: HealOptions) -> None:
    """Shorten a model by a plan, heal it, write it, and print what was written."""
    console = Console()
    weights = opened(options.model, console, options.pre)
    check_stored_type(weights, options.type_name)
    plan = read_fitting_plan(options.plan, weights, options.force, console)
    refuse_unwritable(weights, options.output, options, options.model, options.plan, plan=plan)
    compute = choose_compute(options)
    heal = heal_with(weights, prepare(weights, options, compute, options.output), compute, console)
    plan = finish(weights, plan, options.output, None, heal, console, options.type_name)
    forget_distillation(options.output)
    console.clear()
    print_shortened(weights, plan, options.output, options.as_json, searched=False)
