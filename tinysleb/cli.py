"""The command line: parse, call, print. Everything that prints is here; heavy imports wait until used."""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tinysleb import __version__
from tinysleb.checkpoint.config import block_parameter_count, parameter_count
from tinysleb.checkpoint.weights import total_bytes
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.formats.files import (
    refuse_existing,
    refuse_full_disk,
    replaced_file,
    temporary_folder,
)
from tinysleb.formats.units import format_bytes, parse_bytes
from tinysleb.plan import METRICS, PERPLEXITY, Plan, perplexity, plan_to_json, read_plan

if TYPE_CHECKING:
    from tinysleb.checkpoint.weights import Weights
    from tinysleb.compute.distributed import Group
    from tinysleb.formats.gguf_file import GgufFile, GgufValue
    from tinysleb.heal.healed_weights import HealedTensors
    from tinysleb.heal.text import HealingText
    from tinysleb.search.stopping import StoppingRule
    from tinysleb.text.windows import Windows

WINDOW_LENGTH = 1024
HEAL_TOKENS = 32768
SEARCH_ONLY = {"exact": "exact", "resume": "resume", "texts": "text", "token_file": "tokens"}
SHARD_SIZE = "5GB"
STOPPING_OPTIONS = ("remove", "ratio", "max_perplexity_increase", "fit", "speedup")

Command = TypeVar("Command", bound=Callable[..., Any])
path_type = click.Path(path_type=Path)


class _Failure(click.ClickException):
    """A problem the user can fix, as text: one line, and a hint."""

    def __init__(self, error: TinyslebError) -> None:
        super().__init__(error.message)
        self.hint = error.hint

    def show(self, file: Any = None) -> None:
        click.echo(f"Error: {self.message}", err=True, file=file)
        if self.hint:
            click.echo(f"\nhint: {self.hint}", err=True, file=file)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TinyslebError as error:
            raise _Failure(error) from error


class _Progress:
    """One line on stderr, rewritten in place, with the time that is left; silent if not a terminal."""

    def __init__(self, silent: bool = False) -> None:
        self.begin, self.shown = time.monotonic(), 0.0
        self.visible = sys.stderr.isatty() and not silent

    def __call__(self, what: str, part: float) -> None:
        now = time.monotonic()
        if not self.visible or now - self.shown < 0.2:
            return
        self.shown = now
        left = (now - self.begin) * (1 - part) / part if part > 0.01 else None
        estimate = "" if left is None else f", about {_duration(left)} left"
        click.echo(f"\r\033[K{what}: {part:.0%}{estimate}", err=True, nl=False)

    def clear(self) -> None:
        """Remove the line, so that something else can be printed."""
        if self.visible:
            click.echo("\r\033[K", err=True, nl=False)


def _shared(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


text_options = _shared(
    click.option("--text", "texts", type=path_type, multiple=True, help="A UTF-8 text; repeatable."),
    click.option("--tokens", "token_file", type=path_type, help="Windows as a .npy array, int32 [n, T]."),
    click.option("--windows", type=click.IntRange(1), help="How many.  [default: 4; all for eval]"),
    click.option(
        "--window-length", type=click.IntRange(2), default=WINDOW_LENGTH, show_default=True,
        help="Tokens in a window.",
    ),
)  # fmt: skip
compute_options = _shared(
    click.option("--memory", default="4GiB", show_default=True, help="Limit for the whole process."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="Where to compute.",
    ),
)
heal_options = _shared(
    click.option(
        "--heal-tokens", type=click.IntRange(2), default=HEAL_TOKENS, show_default=True,
        help="Tokens to heal on, those sampled included.",
    ),
    click.option(
        "--self-text", type=click.IntRange(0), metavar="N",
        help="How many of them the model writes itself.  [default: half]",
    ),
)  # fmt: skip
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dtype_choice = click.Choice(["auto", "float32", "bfloat16", "float16"])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Shorten Llama-family models: find the blocks a model can do without, and leave them out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are deleted


@main.command()
@click.argument("model", type=path_type)
@click.option("-o", "--output", "out", type=path_type, help="Default: MODEL's name with -sleb, here.")
@click.option("--remove", type=click.IntRange(1), help="How many blocks to leave out.")
@click.option("--ratio", type=click.FloatRange(0, 1), help="The part to leave out.  [default: 0.2]")
@click.option("--max-perplexity-increase", metavar="15%", help="Go on until perplexity would grow by more.")
@click.option("--fit", metavar="3GiB", help="Go on until the output has no more bytes.")
@click.option(
    "--speedup",
    type=click.FloatRange(1, min_open=True),
    help="Until the model does so many times less work.",
)
@click.option(
    "--keep-first",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Blocks at the bottom that stay.",
)
@click.option(
    "--keep-last",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Blocks at the top that stay.",
)
@text_options
@click.option("--seed", default=0, show_default=True, help="Chooses and orders the windows.")
@click.option(
    "--metric", type=click.Choice(list(METRICS)), default=PERPLEXITY, show_default=True,
    help="What blocks are chosen by.",
)  # fmt: skip
@click.option(
    "--search", type=click.Choice(["plain", "healed"]), default="plain", show_default=True,
    help="healed: afterwards, try every run of neighbouring blocks as well, and judge after healing.",
)  # fmt: skip
@click.option("--exact", is_flag=True, help="Score all candidates on all windows; no racing.")
@compute_options
@click.option("--dtype", type=dtype_choice, default="auto", show_default=True, help="Of the matrix products.")
@click.option(
    "--heal/--no-heal", default=None,
    help="Repair what leaving blocks out costs.  [default: after a search]",
)  # fmt: skip
@heal_options
@click.option(
    "--plan", "plan_path", type=path_type, help="Apply this plan, or as much as --remove or the like says."
)
@click.option(
    "--unknown-arrays", type=click.Choice(["cut", "keep"]),
    help="What to do with a GGUF's arrays that have an entry for each block and are not known.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an unfinished search.")
@force_option
@json_option
def prune(model: Path, out: Path | None, **options: Any) -> None:
    """Find the blocks MODEL can do without, and write it without them.

    MODEL is a .safetensors file (config.json beside it), a Hugging Face folder or a .gguf. The output is of
    the same kind. Without --text, the calibration text is Python's own documentation.

    One of --remove, --ratio, --max-perplexity-increase, --fit and --speedup says when it is enough.

    What is left is healed: the last matrix of each block above the first gap is solved anew, so that the
    model comes as near to the whole one as it can, on --text and on text that the model writes itself.

    Under torchrun (torchrun --nproc-per-node N -m tinysleb prune …) the processes share the search, on one
    machine or several; --memory is for each of them.
    """
    from tinysleb.checkpoint.gguf_source import gguf_weights
    from tinysleb.checkpoint.open_model import open_model

    out, plan_path = out or _default_output(model), options["plan_path"]
    if plan_path is not None and any(options[name] for name in SEARCH_ONLY):
        names = ", ".join(f"--{name}" for name in SEARCH_ONLY.values())
        raise click.UsageError(f"With --plan there is no search: {names} do not go with it.")
    file = _header_to_cut(model, options) if plan_path is not None else None
    if plan_path is not None and file is not None and (options["unknown_arrays"] or _is_copied_only(file)):
        _cut_unmodelled(file, plan_path, out, options)
        return
    weights = open_model(model) if file is None else gguf_weights(file)
    inputs = [model, *([] if plan_path is None else [plan_path])]
    _refuse_outputs(model, out, options["force"], *inputs)
    unhealed = _why_unhealed(weights, options)
    if options["search"] == "healed":
        _check_healed_search(options, unhealed)
    unfinished = out.with_name(out.name + ".unfinished.json")
    if plan_path is not None:
        plan = _plan_for(weights, plan_path, options)
    else:
        found = _searched_together(weights, out, unfinished, options)
        if found is None:
            return
        plan = found
    if unhealed and options["heal"] is None:
        click.echo(f"not healed: {unhealed}", err=True)
    plan = _finish(weights, plan, out, options, heal=not unhealed)
    if plan_path is None:
        unfinished.unlink(missing_ok=True)
    _print_pruned(weights, plan, out, options["as_json"], searched=plan_path is None)


@main.command()
@click.argument("model", type=path_type)
@click.option("--plan", "plan_path", type=path_type, required=True, help="Which blocks are left out.")
@click.option("-o", "--output", "out", type=path_type, required=True, help="What to write.")
@click.option("--text", "texts", type=path_type, multiple=True, help="A UTF-8 text; repeatable.")
@click.option("--tokens", "token_file", type=path_type, help="Windows as a .npy array, int32 [n, T].")
@heal_options
@click.option("--seed", default=0, show_default=True, help="Chooses windows, and what is sampled.")
@compute_options
@click.option("--dtype", type=dtype_choice, default="auto", show_default=True, help="Of the matrix products.")
@force_option
@json_option
def heal(model: Path, plan_path: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Apply a plan to MODEL and heal it, without a search; with other text than before, for instance."""
    from tinysleb.checkpoint.open_model import open_model

    weights = open_model(model)
    _refuse_outputs(model, out, options["force"], model, plan_path)
    plan = read_plan(plan_path)
    _check_blocks(plan, plan_path, weights)
    options |= {"unknown_arrays": None, "heal": True, "fit": None}
    _why_unhealed(weights, options)
    plan = _finish(weights, plan, out, options, heal=True)
    _print_pruned(weights, plan, out, as_json, searched=False)


@main.command()
@click.argument("model", type=path_type, required=False)
@click.option(
    "--gguf", "gguf_out", is_flag=False, flag_value="", metavar="[OUT]",
    help="Write a GGUF.  [default OUT: MODEL's name with .gguf, here]",
)  # fmt: skip
@click.option("--hf", "hf_out", type=path_type, metavar="OUT", help="Write a Hugging Face folder.")
@click.option(
    "--type", "type_name", default="auto", show_default=True,
    help="Of a GGUF's matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0; auto is the model's own.",
)  # fmt: skip
@click.option(
    "--shard-size", help=f"Of a folder's files, at most, but for one tensor.  [default: {SHARD_SIZE}]"
)
@click.option("--verify", is_flag=True, help="Read the GGUF back and compare all of it, also in llama.cpp.")
@click.option("--draft", type=path_type, metavar="TARGET", help="Check that the GGUF can draft for this one.")
@click.option("--pre", help="llama.cpp's name of the pre-tokenizer, where it is not recognised.")
@force_option
def export(
    model: Path | None,
    gguf_out: str | None,
    hf_out: Path | None,
    type_name: str,
    shard_size: str | None,
    verify: bool,
    draft: Path | None,
    pre: str | None,
    force: bool,
) -> None:
    """Write MODEL as a GGUF or as a Hugging Face folder, with all its blocks.

    Without MODEL, the one *-sleb folder in the current directory is taken.
    """
    if (gguf_out is None) == (hf_out is None):
        raise click.UsageError("Give either --gguf [OUT] or --hf OUT.")
    for_gguf = verify or draft or pre or type_name != "auto"
    if shard_size if hf_out is None else for_gguf:
        raise click.UsageError("--type, --pre, --verify, --draft are for --gguf, --shard-size is for --hf.")
    if model is None and gguf_out and Path(gguf_out).is_dir():
        raise click.UsageError(f"{gguf_out} was read as OUT. Name the model first: export MODEL --gguf.")
    model = model or _only_shortened_folder()
    if hf_out is not None:
        _export_folder(model, hf_out, parse_bytes(shard_size or SHARD_SIZE), force)
        return
    name = model.resolve().name if model.is_dir() else model.stem
    out = Path(gguf_out or f"{name}.gguf")
    metadata = _export_gguf(model, out, type_name, pre, force, draft)
    if verify:
        _verify(model, out, metadata)
    if draft:
        _check_draft(out, draft)


@main.command("eval")
@click.argument("model", type=path_type)
@text_options
@compute_options
@click.option("--dtype", type=dtype_choice, default="float32", show_default=True, help="Of matrix products.")
@json_option
def eval_(model: Path, as_json: bool, **options: Any) -> None:
    """Print MODEL's perplexity on a text, its windows taken in order."""
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.compute.compute import compute_on
    from tinysleb.search.evaluate import evaluate
    from tinysleb.text.windows import calibrate

    if not options["texts"] and options["token_file"] is None:
        raise click.UsageError("Give a text with --text, or windows with --tokens.")
    weights = open_model(model)
    tokens = calibrate(weights, _windows(options), seed=None).tokens
    compute = compute_on(options["device"], options["dtype"], options["memory"])
    progress = _Progress()
    result = evaluate(weights, tokens, compute, lambda part: progress(f"evaluating {model}", part))
    progress.clear()
    values = {"perplexity": result.perplexity, **asdict(result)}
    if as_json:
        click.echo(json.dumps(values))
        return
    click.echo(f"perplexity         {result.perplexity:.4f}")
    click.echo(f"tokens             {result.tokens} in {result.windows} windows")
    click.echo(f"tokens per second  {result.tokens_per_second:.0f}")


@main.command()
@click.argument("model", type=path_type)
@click.option("--memory", help="Print what prune would do with so much memory, and how long it would take.")
@click.option("--windows", type=click.IntRange(1), help="With --memory: how many.  [default: 4]")
@click.option(
    "--window-length", type=click.IntRange(2), default=WINDOW_LENGTH, show_default=True,
    help="Tokens in a window.",
)  # fmt: skip
@json_option
def inspect(model: Path, memory: str | None, windows: int | None, window_length: int, as_json: bool) -> None:
    """Print what MODEL is, from its headers alone; with --memory, what prune would need."""
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.commands.describe import describe

    if memory is not None:
        _print_estimate(open_model(model), memory, windows, window_length, as_json)
        return
    values = describe(open_model(model), window_length)
    if as_json:
        click.echo(json.dumps(values))
        return
    least, passes = values.pop("prune_memory_bytes"), values.pop("prune_block_passes")
    for key, value in values.items():
        click.echo(f"{key.replace('_', ' '):<20} {_shown(key, value)}")
    click.echo(f"{'prune needs':<20} --memory of about {format_bytes(least)} at least")
    click.echo(f"{'':<20} {passes} block passes for each window in the first round, if exact")


@main.command()
@click.argument("plan_path", metavar="PLAN", type=path_type)
@click.option("-o", "--output", "out", type=path_type, required=True, help="The HTML file to write.")
@force_option
def report(plan_path: Path, out: Path, force: bool) -> None:
    """Show PLAN as a page: the perplexity curve, every candidate of every round, and what healing did."""
    from tinysleb.commands.report_page import report_html

    plan = read_plan(plan_path)
    refuse_existing(out, force, plan_path)
    with replaced_file(out) as temporary:
        temporary.write_text(report_html(plan), encoding="utf-8")
    click.echo(out)


def _print_estimate(
    weights: Weights, memory: str, windows: int | None, window_length: int, as_json: bool
) -> None:
    from tinysleb.compute.compute import compute_on
    from tinysleb.search.estimate import estimate
    from tinysleb.search.rounds import removable
    from tinysleb.text.windows import DEFAULT_WINDOWS, Windows, calibrate

    count, length = windows or DEFAULT_WINDOWS, min(window_length, weights.config.context_length)
    with suppress(TinyslebError):  # without a tokenizer, it would be windows from a file
        calibrate(weights, Windows((), None, count, length), seed=0)  # what prune holds when it begins
    compute = compute_on("auto", "auto", memory)
    allowed = removable(weights.config.blocks, 1, 1)
    found = estimate(weights, compute, allowed, count, length)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    sweeps = "1 sweep" if found.sweeps == 1 else f"{found.sweeps} sweeps"
    fitting = f"{found.windows} of {length} tokens, {found.windows_in_a_sweep} in a sweep"
    click.echo(f"windows              {fitting}")
    click.echo(
        f"a round, if exact    {sweeps}, {format_bytes(found.bytes_read)} read; racing reads once a heat"
    )
    click.echo(f"while one computes   {'the next block is read' if found.reads_ahead else 'nothing is read'}")
    click.echo(f"between rounds       {format_bytes(found.state_bytes)} for states to keep")
    click.echo(f"the first round      {found.block_passes} block passes of a window, if exact")
    click.echo(
        f"its time             about {_duration(found.seconds)}, if exact; {found.dtype} on {found.device}"
    )


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in value.items())
    if key.endswith("bytes"):
        return format_bytes(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if key.endswith("parameters") else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _default_output(model: Path) -> Path:
    if model.is_dir():
        return Path(f"{model.resolve().name}-sleb")
    return Path(f"{model.stem}-sleb{model.suffix if model.suffix == '.gguf' else ''}")


def _plan_path(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".gguf") + ".plan.json")


def _only_shortened_folder() -> Path:
    folders = sorted(path for path in Path().glob("*-sleb") if path.is_dir())
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise TinyslebError(
            f"no MODEL was given, and the current directory has not one *-sleb folder; found: {found}",
            "name the model: tinysleb export MODEL --gguf",
        )
    return folders[0]


def _plan_for(weights: Weights, path: Path, options: dict[str, Any]) -> Plan:
    """The plan in a file, cut to where a stopping rule ends it if there is one."""
    from tinysleb.search.stopping import ended

    plan = read_plan(path)
    _check_blocks(plan, path, weights)
    if not any(options[name] is not None for name in STOPPING_OPTIONS):
        return plan
    rule = _stopping_rule(weights, range(plan.blocks), options)
    finished = ended(rule, plan, weights)
    if finished is None and rule.increase is not None:
        return plan
    if finished is None:
        raise TinyslebError(
            f"{path} removes {len(plan.rounds)} blocks, which is too few for {rule.name}",
            "leave --plan out, to search for more",
        )
    return finished


def _check_blocks(plan: Plan, path: Path, weights: Weights) -> None:
    if plan.blocks != weights.config.blocks:
        raise TinyslebError(
            f"{path} is for a model of {plan.blocks} blocks, {weights.path} has {weights.config.blocks}"
        )


def _refuse_outputs(model: Path, out: Path, force: bool, *inputs: Path) -> None:
    """Before any slow work: the output, and the plan beside it, where it is not in a folder."""
    refuse_existing(out, force, *inputs)
    if not model.is_dir():
        refuse_existing(_plan_path(out), force, *inputs)


def _searched_together(weights: Weights, out: Path, unfinished: Path, options: dict[str, Any]) -> Plan | None:
    """What `_searched` finds; None in all processes but the first, which writes."""
    from tinysleb.compute.distributed import joined

    with joined() as group:
        try:
            plan = _searched(weights, out, unfinished, options, group)
        except SystemExit as error:
            if group.size == 1:
                raise
            raise TinyslebError(
                f"process {group.rank} of this search was ended, which happens when another one is lost",
                "the rounds that were finished are saved: the same command with --resume continues",
            ) from error
    return plan if group.rank == 0 else None


def _searched(weights: Weights, out: Path, unfinished: Path, options: dict[str, Any], group: Group) -> Plan:
    from tinysleb.export.writers import check_cuttable
    from tinysleb.search.rounds import removable
    from tinysleb.search.run import SearchRequest, run_search

    check_cuttable(weights, options["unknown_arrays"])
    allowed = removable(weights.config.blocks, options["keep_first"], options["keep_last"])
    rule = _stopping_rule(weights, allowed, options)
    if rule.by_count_alone:
        kept = 1 - rule.most * block_parameter_count(weights.config) / parameter_count(weights.config)
        refuse_full_disk(out, int(kept * total_bytes(weights)))
    names = (
        "metric", "seed", "keep_first", "keep_last", "exact", "device", "dtype", "memory", "resume", "force",
    )  # fmt: skip
    request = SearchRequest(
        rule=rule,
        windows=_windows(options),
        unfinished=unfinished,
        **{name: options[name] for name in names},
    )
    progress = _Progress(silent=group.rank > 0)

    def say(text: str) -> None:
        progress.clear()
        if group.rank == 0:
            click.echo(text, err=True)

    return run_search(weights, request, group, say, progress)


def _windows(options: dict[str, Any]) -> Windows:
    from tinysleb.text.windows import Windows

    return Windows(options["texts"], options["token_file"], options["windows"], options["window_length"])


def _stopping_rule(weights: Weights, allowed: range, options: dict[str, Any]) -> StoppingRule:
    """The one rule that the options name; a fifth of the blocks without one."""
    from tinysleb.search import stopping

    given = {name: options[name] for name in STOPPING_OPTIONS if options[name] is not None}
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names} exclude each other: give one.")
    config, most = weights.config, min(len(allowed), weights.config.blocks - 1)
    default: tuple[str, Any] = ("ratio", 0.2)
    name, value = next(iter(given.items()), default)
    if name == "remove":
        return stopping.by_count(value)
    if name == "ratio":
        return stopping.by_ratio(value, config)
    if name == "speedup":
        return stopping.by_speedup(value, config, most)
    if name == "fit":
        return stopping.by_size(value, weights, allowed)
    return stopping.by_perplexity(value, most)


def _header_to_cut(model: Path, options: dict[str, Any]) -> GgufFile | None:
    """The header of a GGUF that a plan is applied to, read once; None for other models."""
    from tinysleb.formats.gguf_file import is_gguf, read_gguf

    return read_gguf(model) if options["unknown_arrays"] or is_gguf(model) else None


def _is_copied_only(file: GgufFile) -> bool:
    """Whether a GGUF is of a family that is not modelled, and can be cut all the same."""
    from tinysleb.export.gguf_copy import COPIED_ONLY

    return file.values().get("general.architecture") in COPIED_ONLY


def _cut_unmodelled(file: GgufFile, plan_path: Path, out: Path, options: dict[str, Any]) -> None:
    """Apply a plan to a GGUF whose family is not modelled: its bytes are copied, whatever they mean."""
    from tinysleb.export.gguf_copy import write_unmodelled

    model, plan = file.path, read_plan(plan_path)
    if any(options[name] is not None for name in STOPPING_OPTIONS):
        raise click.UsageError(
            "This model's family is not modelled: the plan is applied whole or not at all."
        )
    for path in (out, _plan_path(out)):
        refuse_existing(path, options["force"], model, plan_path)
    for note in write_unmodelled(file, out, plan, options["unknown_arrays"]).notes:
        click.echo(note, err=True)
    click.echo(
        f"{out}: {len(plan.kept)} of {plan.blocks} blocks, without {', '.join(map(str, plan.removed))}"
    )


def _finish(weights: Weights, plan: Plan, out: Path, options: dict[str, Any], heal: bool) -> Plan:
    """Heal if that is wanted, and write. Returns the plan with what healing did."""
    plan = replace(plan, healing={})  # of a plan from a file: what was done to another output
    if not heal or not plan.removed:
        _write_shortened(weights, plan, out, options["unknown_arrays"], None)
        return plan
    from tinysleb.heal.healed_weights import HealedTensors

    with temporary_folder(out) as folder:
        healed = HealedTensors(folder)
        plan = _healed_plan(weights, plan, options, healed)
        _write_shortened(weights, plan, out, options["unknown_arrays"], healed)
    return plan


def _why_unhealed(weights: Weights, options: dict[str, Any]) -> str | None:
    """Why the result will not be healed, known before the slow work; None if it will.

    Raises TinyslebError if healing was asked for and is impossible.
    """
    if options["heal"] is False:
        return "--no-heal"
    if options["heal"] is None and options["plan_path"] is not None:
        return "a plan was applied as it is; tinysleb heal, or --heal, heals as well"
    from tinysleb.compute.compute import compute_on
    from tinysleb.heal.healed_weights import grown_types
    from tinysleb.heal.run import check_memory, check_text

    text = _healing_text(options)
    try:
        check_text(weights, text)
        compute = compute_on(options["device"], options["dtype"], options["memory"])
        check_memory(weights, text, compute)
        if options["fit"] and (recoded := grown_types(weights)):
            raise TinyslebError(f"what is stored as {recoded} would become larger, and --fit not be kept")
    except TinyslebError as error:
        if options["heal"]:
            raise
        return error.in_a_line
    return None


def _check_healed_search(options: dict[str, Any], unhealed: str | None) -> None:
    if options["plan_path"] is not None:
        raise click.UsageError("With --plan there is no search: --search healed does not go with it.")
    if options["fit"] or options["max_perplexity_increase"]:
        raise click.UsageError("--search healed takes a number of blocks: --remove, --ratio or --speedup.")
    if unhealed:
        raise TinyslebError(f"--search healed judges healed models, and there are none: {unhealed}")


def _healing_text(options: dict[str, Any]) -> HealingText:
    from tinysleb.heal.text import HealingText

    tokens, sampled = options["heal_tokens"], options["self_text"]
    sampled = tokens // 2 if sampled is None else min(sampled, tokens)
    return HealingText(options["texts"], options["token_file"], tokens, sampled, options["seed"])


def _healed_plan(weights: Weights, plan: Plan, options: dict[str, Any], healed: HealedTensors) -> Plan:
    from tinysleb.compute.compute import compute_on
    from tinysleb.heal.choose_blocks import choose_healed
    from tinysleb.heal.run import gathered, run_healing
    from tinysleb.search.rounds import removable

    text = _healing_text(options)
    compute = compute_on(options["device"], options["dtype"], options["memory"])
    progress = _Progress()

    def say(line: str) -> None:
        progress.clear()
        click.echo(line, err=True)

    sources, compared = list(gathered(weights, text, compute, say, progress)), {}
    if options.get("search") == "healed":
        allowed = removable(plan.blocks, options["keep_first"], options["keep_last"])
        choosing = partial(progress, "choosing by the healed loss")
        count = len(plan.removed)
        say(f"choosing by the healed loss: the search's blocks, or a run of {count} neighbours")
        plan, finalists = choose_healed(weights, plan, allowed, sources, compute, healed.folder, choosing)
        for choice in finalists:
            blocks = ", ".join(map(str, choice.removed))
            say(f"healed without {blocks}: perplexity {perplexity(choice.loss):.2f} on other windows")
        compared = {"compared": [asdict(choice) for choice in finalists]}
    report = run_healing(weights, plan, sources, text.seed, compute, healed, say, progress)
    return replace(plan, healing=report | compared)


def _write_shortened(
    weights: Weights, plan: Plan, out: Path, unknown_arrays: str | None, healed: HealedTensors | None
) -> None:

    from tinysleb.checkpoint.weights import Shortened
    from tinysleb.export.writers import own_format, write

    model: Weights = Shortened(weights, plan.kept)
    if healed is not None:
        from tinysleb.heal.healed_weights import Healed

        model = Healed(model, healed)
    written = write(
        model, out, plan, output_format=own_format(weights), unknown_arrays=unknown_arrays, force=True
    )
    for note in written.notes:
        click.echo(note, err=True)


def _print_pruned(weights: Weights, plan: Plan, out: Path, as_json: bool, searched: bool) -> None:
    before, after = (parameter_count(c) for c in (weights.config, weights.config.shortened(plan.kept)))
    if as_json:
        click.echo(json.dumps({"output": str(out), "parameters": after, **plan_to_json(plan)}))
        return
    removed = ", ".join(map(str, plan.removed)) or "none"
    click.echo(f"{out}: {len(plan.kept)} of {plan.blocks} blocks, without {removed}")
    click.echo(f"parameters: {before:,} -> {after:,} ({after / before:.0%})")
    if searched and plan.loss is not None and not math.isnan(plan.rounds[-1].loss):
        first, last = perplexity(plan.loss), perplexity(plan.rounds[-1].loss)
        what = "the calibration text, before healing" if plan.healing else "the calibration text"
        click.echo(f"perplexity on {what}: {first:.2f} -> {last:.2f}")


def _export_folder(model: Path, out: Path, shard_bytes: int, force: bool) -> None:
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.export.writers import HUGGINGFACE, write

    weights = open_model(model)
    refuse_existing(out, force, model)
    write(weights, out, output_format=HUGGINGFACE, shard_bytes=shard_bytes, force=force)
    click.echo(f"{out}: {weights.config.blocks} blocks")


def _verify(model: Path, out: Path, metadata: Mapping[str, GgufValue]) -> None:
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.export.llama_cpp import is_installed
    from tinysleb.export.verify import check_metadata, check_tensors, compare_with_llama_cpp

    check_metadata(out, metadata)
    checks = list(check_tensors(out, open_model(model)))
    for check in checks:
        values = f"{check.smallest:.4g} … {check.largest:.4g}"
        click.echo(f"{check.name:<32} {check.type:<5} {check.sha256[:16]}  {values}, error {check.error:.2g}")
    click.echo(f"{len(checks)} tensors read back: all as they should be")
    if not is_installed():
        click.echo(f"llama.cpp was not asked; to compare with it, run {pip_install('llamacpp')}", err=True)
        return
    click.echo(f"llama.cpp loads it; its logits differ by {compare_with_llama_cpp(out):.2%} of their spread")


def _check_draft(out: Path, target: Path) -> None:
    from tinysleb.export.draft import check_draft
    from tinysleb.formats.gguf_file import read_gguf

    check_draft(read_gguf(out), read_gguf(target))
    command = shlex.join(["llama-server", "-m", str(target), "-md", str(out)])
    click.echo(f"{out} can draft for {target}: {command}")


def _export_gguf(
    model: Path, out: Path, type_name: str, pre: str | None, force: bool, draft: Path | None
) -> Mapping[str, GgufValue]:
    """Write the GGUF, and say so. Returns its metadata."""
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.export.writers import GGUF, write
    from tinysleb.formats.gguf_file import read_gguf

    weights = open_model(model)
    refuse_existing(out, force, model, *([] if draft is None else [draft]))
    if draft is not None:
        read_gguf(draft)  # before the slow work
    written = write(weights, out, output_format=GGUF, type_name=type_name, pre=pre, force=force)
    for note in written.notes:
        click.echo(note, err=True)
    click.echo(f"{out}: {weights.config.blocks} blocks, {format_bytes(out.stat().st_size)}")
    return written.metadata
