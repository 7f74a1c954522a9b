"""What `prune` and `heal` share: a plan's fit to a model, and writing the shortened model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinysleb.checkpoint.fingerprint import is_same_model
from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.commands.console import Console
from tinysleb.commands.options import HealingOptions
from tinysleb.commands.stored_types import faster_type, in_types
from tinysleb.errors import TinyslebError
from tinysleb.export.writers import check_writable, own_format, write
from tinysleb.formats.files import temporary_folder
from tinysleb.plan import Plan, read_plan
from tinysleb.search.gain import with_sizes
from tinysleb.sublayers import block_cut

if TYPE_CHECKING:
    from tinysleb.heal.healed_weights import HealedTensors

    Heal = Callable[[Plan, HealedTensors], Plan]
    """Heals the model shortened by a plan into files, and returns the plan with what it did."""


def refuse_unwritable(
    weights: Weights,
    out: Path,
    options: HealingOptions,
    *inputs: Path,
    plan: Plan | None = None,
    unknown_arrays: str | None = None,
) -> None:
    """Before any slow work: `check_writable`, as `finish` will write. `inputs` must not be replaced."""
    check_writable(
        weights, out, plan, output_format=own_format(weights), type_name=options.type_name or "auto",
        unknown_arrays=unknown_arrays, force=options.force, inputs=inputs,
    )  # fmt: skip


def read_fitting_plan(path: Path, weights: Weights, force: bool, console: Console) -> Plan:
    """A plan from a file, for this model.

    Raises TinyslebError if it was made for another one: always if the number of blocks differs, and without
    `force` if the weights do.
    """
    plan = read_plan(path)
    check_fitting(plan, path, weights, force, console)
    return plan


def check_fitting(plan: Plan, path: Path, weights: Weights, force: bool, console: Console) -> None:
    """Raise TinyslebError as `read_fitting_plan` does; what few models survive is said."""
    if plan.blocks != weights.config.blocks:
        raise TinyslebError(
            f"{path} is for a model of {plan.blocks} blocks, {weights.path} has {weights.config.blocks}"
        )
    if not force and not is_same_model(plan.settings, weights):
        known = "model_fingerprint" in plan.settings
        what = "another model" if known else "another model, or another file of it"
        raise TinyslebError(
            f"{path} was made for {what} ({plan.settings.get('model', 'unnamed')}), not for {weights.path}",
            "search again without --plan, or apply it all the same with --force",
        )
    for block, where in ((0, "first"), (plan.blocks - 1, "last")):
        if not set(block_cut(block)) & set(plan.stack):
            console.say(f"warning: the plan removes the {where} block, which few models survive")


def finish(
    weights: Weights,
    plan: Plan,
    out: Path,
    unknown_arrays: str | None,
    heal: Heal | None,
    console: Console,
    type_name: str | None,
) -> Plan:
    """Heal if `heal` is given, and write, in a type if that is given. Returns the plan with what
    each cut brings, and what healing did."""
    with shortened_model(weights, plan, out, heal) as (model, plan):
        plan = with_sizes(plan, in_types(weights, type_name))
        write_shortened(model, plan, out, unknown_arrays, console, type_name)
    return plan


@contextmanager
def shortened_model(
    weights: Weights, plan: Plan, out: Path, heal: Heal | None
) -> Iterator[tuple[Weights, Plan]]:
    """The model shortened by a plan, healed if `heal` is given, and the plan with what healing did. What is
    healed is kept in files beside `out`, which are deleted in the end."""
    plan = replace(plan, healing={})  # of a plan from a file: what was done to another output
    with ExitStack() as stack:
        model: Weights = Shortened(weights, plan.kept)
        if heal is not None and plan.removed:
            from tinysleb.heal.healed_weights import Healed, HealedTensors

            healed = HealedTensors(stack.enter_context(temporary_folder(out)))
            plan = heal(plan, healed)
            model = Healed(Shortened(weights, plan.kept), healed)
        yield model, plan


def write_shortened(
    model: Weights, plan: Plan, out: Path, unknown_arrays: str | None, console: Console, type_name: str | None
) -> None:
    """Write what `shortened_model` gives, in its original's format; what is noteworthy is said."""
    console.say(f"writing {out}")
    written = write(
        model, out, plan, output_format=own_format(model), type_name=type_name or "auto",
        unknown_arrays=unknown_arrays, force=True,
    )  # fmt: skip
    for note in (*written.notes, faster_type(in_types(model, type_name))):
        if note:
            console.say(note)
