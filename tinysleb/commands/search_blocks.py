"""`tinysleb prune` without a plan: search, heal and write."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinysleb.checkpoint.config import block_parameter_count, parameter_count
from tinysleb.checkpoint.weights import Checkpoint, total_bytes
from tinysleb.commands.calibration import announced, own_text, text_calibration, with_own_text
from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console, duration
from tinysleb.commands.dry_run import print_dry_run
from tinysleb.commands.healing import forget_distillation, heal_with, healing_line, prepare_unless
from tinysleb.commands.interruption import told_what_is_kept
from tinysleb.commands.opening import open_as_given, tell_remarks
from tinysleb.commands.options import refuse_unused
from tinysleb.commands.outputs import unfinished_search
from tinysleb.commands.prune_options import PruneOptions
from tinysleb.commands.shortened import finish, refuse_unwritable
from tinysleb.commands.signals import Stopped
from tinysleb.commands.stopping_rule import costs_of, stopping_rule, unhealed_part
from tinysleb.commands.stored_types import check_stored_type, in_types
from tinysleb.commands.summary import OWN_TEXT, print_shortened
from tinysleb.commands.work import Stage, console_works, job_stages, search_progress, seconds_of
from tinysleb.compute.compute import Compute
from tinysleb.compute.distributed import Group, join_group
from tinysleb.errors import TinyslebError
from tinysleb.export.writers import GGUF, own_format, with_one_cut
from tinysleb.formats.files import refuse_full_disk
from tinysleb.heal.run import PreparedHealing
from tinysleb.search.cuts import HEALED, removable
from tinysleb.search.pace import measure_pace
from tinysleb.search.run import SearchRequest, announce, check_request, read_unfinished, run_search
from tinysleb.text.windows import Calibration

if TYPE_CHECKING:
    from tinysleb.commands.shortened import Heal


def search_blocks(options: PruneOptions) -> None:
    """Search, in all processes that torchrun started; heal, write and print, in the first."""
    weights = open_as_given(options.model, options.pre)
    if own_format(weights) != GGUF:
        refuse_unused(options.given, ("unknown_arrays",), "MODEL is not a GGUF")
    check_stored_type(weights, options.type_name)
    shorter = with_one_cut(
        weights, options.cut, removable(weights.config.blocks, options.keep_first, options.keep_last)
    )
    refuse_unwritable(shorter, options.out, options, options.model, unknown_arrays=options.unknown_arrays)
    with join_group() as group:
        try:
            _search_and_write(weights, options, group)
        except Stopped as error:
            if group.size == 1 or error.number != signal.SIGTERM:
                raise
            raise TinyslebError(
                f"process {group.rank} was stopped because another process of this search failed",
                "finished rounds are saved; run the same command with --resume to continue",
            ) from error


def _search_and_write(weights: Checkpoint, options: PruneOptions, group: Group) -> None:
    unfinished = unfinished_search(options.out)
    request = _request(weights, options)
    check_request(request, weights.config.blocks)
    saved = read_unfinished(unfinished, options.resume, options.force, group)
    calibration = text_calibration(weights, options, options.refined)
    compute = choose_compute(options, group, saved)
    prepared = prepare_unless(weights, options, compute, options.out, options.fit)
    if isinstance(prepared, str) and options.search == HEALED:
        raise TinyslebError(f"--search healed needs healing: {prepared}")
    own = own_text(calibration, options, prepared)
    stages = job_stages(weights.config, calibration, request, prepared, own)
    if options.dry_run:
        _print_dry_run(weights, announced(calibration, own), request, compute, prepared, stages, options)
        return
    console = Console(console_works(stages, weights.config), silent=group.rank > 0)
    tell_remarks(weights, console)
    if options.resume and saved is None:
        console.say(f"there is no {unfinished} to resume: the search starts from the beginning")
    _say_what_healing_lacks(prepared, options, console)
    with told_what_is_kept(options.out, console):
        calibration = with_own_text(weights, calibration, own, compute, console)
        plan = run_search(
            weights, calibration, request, compute.between_stages(),
            saved=saved, unfinished=unfinished, say=console.say,
            progress=search_progress(console.progress, weights.config, request.rule),
        )  # fmt: skip
        if group.rank > 0:
            return
        heal = _what_heals(weights, prepared, request, options, compute, console)
        plan = unhealed_part(plan, request.rule) if heal is None else plan
        plan = finish(weights, plan, options.out, options.unknown_arrays, heal, console, options.type_name)
    unfinished.unlink(missing_ok=True)
    forget_distillation(options.out)
    console.clear()
    _say_what_healing_lacks(prepared, options, console)
    print_shortened(weights, plan, options.out, options.as_json, searched=True, console=console)


def _what_heals(
    weights: Checkpoint,
    prepared: PreparedHealing | str,
    request: SearchRequest,
    options: PruneOptions,
    compute: Compute,
    console: Console,
) -> Heal | None:
    if not isinstance(prepared, PreparedHealing):
        return None
    allowed = removable(weights.config.blocks, options.keep_first, options.keep_last)
    runs_among = allowed if options.search == HEALED else None
    return heal_with(weights, prepared, compute, console, runs_among, request.rule.by_quality)


def _say_what_healing_lacks(prepared: PreparedHealing | str, options: PruneOptions, console: Console) -> None:
    """Before the search, and again in the end."""
    if isinstance(prepared, PreparedHealing):
        if not options.texts and options.token_file is None:
            console.say(f"note: {OWN_TEXT}")
    elif options.heal is None:
        console.say(f"not healed: {prepared}")


def _request(weights: Checkpoint, options: PruneOptions) -> SearchRequest:
    """What to search for. Raises TinyslebError if the disk has no space for the result."""
    allowed = removable(weights.config.blocks, options.keep_first, options.keep_last)
    rule = stopping_rule(options, weights, allowed)
    if rule.by_count_alone:
        kept = 1 - rule.most * block_parameter_count(weights.config) / parameter_count(weights.config)
        refuse_full_disk(options.out, int(kept * total_bytes(in_types(weights, options.type_name))))
    return SearchRequest(
        rule, options.metric, options.seed, options.keep_first, options.keep_last, options.exact, options.cut,
        costs_of(options, weights), options.refined, options.scored_by,
    )  # fmt: skip


def _print_dry_run(
    weights: Checkpoint,
    calibration: Calibration,
    request: SearchRequest,
    compute: Compute,
    prepared: PreparedHealing | str,
    stages: Sequence[Stage],
    options: PruneOptions,
) -> None:
    lines = announce(weights, calibration, request, compute)
    lines += [f"not healed: {prepared}"] if isinstance(prepared, str) else [healing_line(prepared)]
    pace = measure_pace(weights, compute, calibration.tokens.shape[1])
    seconds = seconds_of(stages, pace)
    lines.append(f"about {duration(seconds)} in all, at the pace of a block just now")
    print_dry_run(options.out, lines, options.as_json, seconds)
