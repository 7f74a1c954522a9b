"""`tinysleb draft`: the shortened model that makes its original generate fastest, as its draft."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint, Shortened
from tinysleb.commands.calibration import text_calibration
from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console, Work
from tinysleb.commands.draft_options import DraftOptions
from tinysleb.commands.draft_result import SMALLER, Result, print_result, tried_line
from tinysleb.commands.healing import forget_distillation, heal_with, prepare_unless
from tinysleb.commands.interruption import told_what_is_kept
from tinysleb.commands.opening import open_as_given, tell_remarks
from tinysleb.commands.outputs import sole_command, unfinished_search
from tinysleb.commands.shortened import refuse_unwritable, shortened_model, write_shortened
from tinysleb.commands.stored_types import check_stored_type, in_types
from tinysleb.commands.work import SAMPLING, console_works, job_stages
from tinysleb.compute.compute import ALONE, Compute
from tinysleb.export.draft import check_draft
from tinysleb.export.writers import GGUF, own_format, with_one_cut
from tinysleb.formats.files import temporary_folder
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.heal.choose_blocks import FEW_TOKENS
from tinysleb.heal.choose_draft import TRIES, Trial, choose_draft, first_cuts
from tinysleb.heal.draft_judge import LENGTH, TEXTS, draft_judge
from tinysleb.heal.run import PreparedHealing
from tinysleb.plan import DIVERGENCE, Plan
from tinysleb.search.cost import Costs, generation_costs
from tinysleb.search.cuts import removable
from tinysleb.search.run import SearchRequest, check_request, read_unfinished, run_search
from tinysleb.search.speculative import Draft, least_bytes
from tinysleb.search.stopping import by_count
from tinysleb.text.windows import Calibration, interleave

TRYING = 3.0
"""What healing a draft on few tokens and judging it costs, for each of these, in block passes, about."""
DISTILLED, SOLVED = 0.6, 0.9
"""What is left of the misses that a draft has when it is tried, once it was distilled, or healed on all
tokens: less than it mostly is, so that no draft is given up too early."""


@dataclass(frozen=True)
class Job:
    """What is known before the slow work."""

    weights: Checkpoint
    options: DraftOptions
    request: SearchRequest
    calibration: Calibration
    compute: Compute
    prepared: PreparedHealing | str
    saved: Plan | None

    def costs(self, plan: Plan | None = None) -> Costs:
        """What a token costs of the original or, with a plan, of the draft, as they are stored."""
        if plan is None:
            return generation_costs(self.weights, self.options.context)
        return self.costs_in(self.options.type_name, plan)

    def costs_in(self, type_name: str | None, plan: Plan) -> Costs:
        """The draft's, in a type."""
        stored = in_types(Shortened(self.weights, plan.kept), type_name)
        return generation_costs(stored, self.options.context)

    def cost_of(self, plan: Plan) -> float:
        """What a token of the draft costs, relative to one of the original."""
        return self.costs(plan).total / self.costs().total


def draft(options: DraftOptions) -> None:
    """Search, choose, heal and judge; write the draft if it pays, and print what it is worth."""
    with sole_command(options.out):
        _draft(options)


def _draft(options: DraftOptions) -> None:
    job = _prepare(options)
    console = Console(_works(job))
    tell_remarks(job.weights, console)
    if isinstance(job.prepared, str) and options.heal is None:
        console.say(f"not healed: {job.prepared}")
    with told_what_is_kept(options.out, console):
        result = _found(job, console)
    if result.written:
        unfinished_search(options.out).unlink(missing_ok=True)
        forget_distillation(options.out)
    console.clear()
    print_result(result, options)


def _prepare(options: DraftOptions) -> Job:
    """Raises TinyslebError for all that can be known to fail."""
    weights = open_as_given(options.model, options.pre)
    check_stored_type(weights, options.type_name)
    blocks = weights.config.blocks
    allowed = removable(blocks, options.keep_first, options.keep_last)
    shorter = with_one_cut(weights, options.cut, allowed)
    refuse_unwritable(shorter, options.out, options, options.model)
    count = options.remove or min(len(allowed), blocks - 1)
    request = SearchRequest(
        by_count(count, f"--remove {count}"), seed=options.seed, keep_first=options.keep_first,
        keep_last=options.keep_last, kind=options.cut, score=DIVERGENCE,
    )  # fmt: skip
    check_request(request, blocks)
    saved = read_unfinished(unfinished_search(options.out), options.resume, options.force, ALONE)
    calibration = text_calibration(weights, options, refined=True)
    compute = choose_compute(options, saved=saved)
    prepared = prepare_unless(weights, options, compute, options.out, None)
    return Job(weights, options, request, calibration, compute, prepared, saved)


def _works(job: Job) -> list[Work]:
    config = job.weights.config
    stages = job_stages(config, job.calibration, job.request, job.prepared)
    searching, *healing = console_works(stages, config)
    writing, trying = SAMPLING * TEXTS * LENGTH, TRYING * 2 * TRIES * FEW_TOKENS
    return [searching, *(Work(each * config.blocks) for each in (writing, trying)), *healing]


def _found(job: Job, console: Console) -> Result:
    out = job.options.out
    searched = run_search(
        job.weights, job.calibration, job.request, job.compute,
        saved=job.saved, unfinished=unfinished_search(out), say=console.say, progress=console.progress,
    )  # fmt: skip
    trial, fit = _trial(job, console), _fit(job.prepared)
    how = "as they are" if fit is None else "healed on few tokens"
    console.say(f"trying drafts, {how}, on {trial.judge.count} tokens of the original's")
    with temporary_folder(out) as folder:
        plan, tried = choose_draft(
            trial, searched, fit, folder,
            tell=lambda plan, found: console.say(tried_line(plan, found)),
            progress=partial(console.progress, "trying drafts"),
        )  # fmt: skip
    found, written = tried[len(plan.rounds)], False
    if job.options.force or found.with_misses(trial.misses_left).pays:
        plan, found, written = _heal_and_write(job, trial, plan, console)
    needed = min(_needed_bytes(job, first_cuts(searched, count), each) for count, each in tried.items())
    smaller = None
    if own_format(job.weights) == GGUF and job.options.type_name is None:
        smaller = job.costs_in(SMALLER, plan).total / job.costs().total
    return Result(plan, found, written, trial.judge.count, tried, needed, job.costs().total, smaller)


def _trial(job: Job, console: Console) -> Trial:
    compute, known = job.compute.between_stages(), job.calibration
    windows = known.tokens if known.others is None else known.others
    judge = draft_judge(
        job.weights, windows, job.options.token_file is None, job.options.seed, compute,
        console.say, partial(console.progress, "writing text to judge drafts by"),
    )  # fmt: skip
    ratio = job.options.prompt_ratio
    return Trial(
        job.weights, judge, job.cost_of, job.options.draft_max,
        torch.inf if ratio is None else ratio, compute, _misses_left(job.prepared),
    )  # fmt: skip


def _misses_left(prepared: PreparedHealing | str) -> float:
    """What healing is hoped to leave of the misses of a draft that was tried."""
    if _fit(prepared) is None or isinstance(prepared, str):
        return 1
    return SOLVED if prepared.distilling is None else DISTILLED


def _fit(prepared: PreparedHealing | str) -> Tensor | None:
    """Text to heal drafts on that are tried."""
    if isinstance(prepared, str) or not prepared.sources:
        return None
    return interleave([source.fit for source in prepared.sources])


def _heal_and_write(job: Job, trial: Trial, plan: Plan, console: Console) -> tuple[Plan, Draft, bool]:
    """The plan with what healing did, what the draft is worth, and whether it was written."""
    out, heal = job.options.out, None
    if isinstance(job.prepared, PreparedHealing):
        heal = heal_with(job.weights, job.prepared, job.compute, console)
    with shortened_model(job.weights, plan, out, heal) as (model, healed):
        found = trial.of(model, healed)
        if not found.pays and not job.options.force:
            return healed, found, False
        write_shortened(model, healed, out, None, console, job.options.type_name)
    if own_format(job.weights) == GGUF:
        check_draft(read_gguf(out), read_gguf(job.options.model))
    return healed, found, True


def _needed_bytes(job: Job, plan: Plan, found: Draft) -> float:
    """How many bytes the original would have to read for a token, so that these cuts pay: with larger blocks,
    a head as it is, and as much acceptance."""
    original, costs = job.costs(), job.costs(plan)
    share = sum(costs.sublayers) / sum(original.sublayers)
    return least_bytes(found.most_cost, original.rest, costs.rest, share)
