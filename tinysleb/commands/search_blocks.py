"""`tinysleb prune` without a plan: search, heal and write."""

from __future__ import annotations

from tinysleb.checkpoint.config import block_parameter_count, parameter_count
from tinysleb.checkpoint.weights import Checkpoint, total_bytes
from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console
from tinysleb.commands.healing import forget_distillation, heal_with, prepare_unless
from tinysleb.commands.interruption import told_what_is_kept, unfinished_search
from tinysleb.commands.opening import open_as_given, tell_remarks
from tinysleb.commands.options import refuse_unused
from tinysleb.commands.prune_options import PruneOptions
from tinysleb.commands.shortened import finish, print_shortened, refuse_unwritable
from tinysleb.commands.stopping_rule import costs_of, stopping_rule
from tinysleb.commands.stored_types import check_stored_type, in_types
from tinysleb.compute.distributed import Group, join_group
from tinysleb.errors import TinyslebError
from tinysleb.export.writers import GGUF, own_format, with_one_cut
from tinysleb.formats.files import refuse_full_disk
from tinysleb.heal.repair import STEPS_PART
from tinysleb.heal.run import PreparedHealing
from tinysleb.search.cuts import ANY, HALF, HEALED, removable
from tinysleb.search.run import SearchRequest, check_request, read_unfinished, run_search
from tinysleb.text.windows import Calibration, WindowSource, read_windows, with_others

RACING, SAMPLING, HEALING, DISTILLING = 0.35, 2.0, 1.0, 7.0
"""What a token costs at each block in a search, sampling, healing and distilling, in block passes, about."""


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
        except SystemExit as error:
            if group.size == 1:
                raise
            raise TinyslebError(
                f"process {group.rank} was stopped because another process of this search failed",
                "finished rounds are saved; run the same command with --resume to continue",
            ) from error


def _search_and_write(weights: Checkpoint, options: PruneOptions, group: Group) -> None:
    unfinished = unfinished_search(options.out)
    request = _request(weights, options)
    allowed = check_request(request, weights.config.blocks)
    saved = read_unfinished(unfinished, options.resume, options.force, group)
    calibration = _calibration(weights, options)
    compute = choose_compute(options, group, saved)
    prepared = prepare_unless(weights, options, compute, options.out, options.fit)
    if isinstance(prepared, str) and options.search == HEALED:
        raise TinyslebError(f"--search healed needs healing: {prepared}")
    console = Console(stage_works(weights, calibration, request, prepared), silent=group.rank > 0)
    tell_remarks(weights, console)
    if options.resume and saved is None:
        console.say(f"there is no {unfinished} to resume: the search starts from the beginning")
    _say_if_unhealed(prepared, options, console)
    with told_what_is_kept(options.out, console):
        plan = run_search(
            weights, calibration, request, compute,
            saved=saved, unfinished=unfinished, say=console.say, progress=console.progress,
        )  # fmt: skip
        if group.rank > 0:
            return
        heal = None
        if isinstance(prepared, PreparedHealing):
            runs_among = allowed if options.search == HEALED else None
            heal = heal_with(weights, prepared, compute, console, runs_among)
        plan = finish(weights, plan, options.out, options.unknown_arrays, heal, console, options.type_name)
    unfinished.unlink(missing_ok=True)
    forget_distillation(options.out)
    console.clear()
    print_shortened(weights, plan, options.out, options.as_json, searched=True)


def _calibration(weights: Checkpoint, options: PruneOptions) -> Calibration:
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    calibration = read_windows(weights, source, options.seed)
    return with_others(weights, source, calibration, options.seed) if options.refined else calibration


def _say_if_unhealed(prepared: PreparedHealing | str, options: PruneOptions, console: Console) -> None:
    if isinstance(prepared, str) and options.heal is None:
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
        costs_of(options, weights), options.refined, options.score,
    )  # fmt: skip


def stage_works(
    weights: Checkpoint,
    calibration: Calibration,
    request: SearchRequest,
    prepared: PreparedHealing | str,
) -> list[float]:
    """How much work each stage is, in tokens that pass a block; a search of n candidates is n²/2 passes."""
    blocks = weights.config.blocks
    rounds = range(blocks, max(blocks - request.rule.most, 1), -1)
    scored = calibration.tokens.numel() * sum(candidates**2 / 2 for candidates in rounds)
    works = [RACING * scored * (2 if request.kind in (HALF, ANY) else 1)]
    works += works if request.refine and calibration.others is not None else []
    if isinstance(prepared, PreparedHealing):
        text = prepared.text
        works += [SAMPLING * text.sampled * blocks] if text.sampled else []
        works += [HEALING * text.tokens * blocks]
        if prepared.distilling is not None:
            distilling = DISTILLING * prepared.distilling.limits.tokens * blocks
            works += [(1 - STEPS_PART) * distilling, HEALING * text.tokens * blocks, STEPS_PART * distilling]
    return works
