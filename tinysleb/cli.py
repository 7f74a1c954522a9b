"""The command line: click declarations and help, nothing else. A command imports its module when it runs."""

from __future__ import annotations

from typing import Any

import click

from tinysleb.commands.options import DISTILL, WAYS
from tinysleb.commands.parsing import CommandGroup, HealingCommand, options_given
from tinysleb.commands.search_options import draft_options, search_options, stopping_options
from tinysleb.commands.shared_options import (
    compute_options,
    distill_options,
    dtype_choice,
    dtype_option,
    force_option,
    heal_options,
    json_option,
    measuring_window_options,
    model_path,
    output_option,
    path_type,
    pre_option,
    quiet_option,
    seed_option,
    stored_type_option,
    text_options,
    threads_option,
    window_options,
)
from tinysleb.commands.signals import stop_on_signals
from tinysleb.commands.values import cut_names
from tinysleb.compute.threads import limit_spinning
from tinysleb.formats.tensor_types import WRITABLE


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="tinysleb")
@click.pass_context
def main(context: click.Context) -> None:
    """Make Llama-family models shorter and faster by removing the blocks they can do without."""
    limit_spinning()
    context.call_on_close(stop_on_signals())


@main.command(cls=HealingCommand)
@click.argument("model", type=model_path)
@output_option(
    help="Where to write, or a folder to write into.  [default: MODEL's name plus --type and -sleb, here]"
)
@stopping_options
@text_options
@pre_option
@window_options
@seed_option
@search_options
@compute_options
@dtype_option
@click.option(
    "--heal",
    type=click.Choice(WAYS),
    help="Repair the shortened model: not at all, by the closed form alone, or distil it as well.  "
    "[default: distill, after a search]",
)
@heal_options
@distill_options
@stored_type_option
@click.option(
    "--plan",
    type=path_type,
    help="Apply this plan without a search; --remove and the like use only its beginning.",
)
@click.option(
    "--blocks",
    type=cut_names,
    metavar="3,4,7-9",
    help='Remove these without a search; "F5 A6" names sublayers. Healed only with --heal, as a --plan is.',
)
@click.option(
    "--unknown-arrays",
    type=click.Choice(["cut", "keep"]),
    help="Cut or keep arrays of a GGUF that have one entry per block and are not known.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and about how long it takes.")
@click.option("--resume", is_flag=True, help="Continue an unfinished search or distillation.")
@click.option(
    "--force", is_flag=True, help="Replace an existing output; apply a plan made for another model."
)
@json_option
@quiet_option
def prune(**options: Any) -> None:
    """Find the blocks MODEL can do without, and write it without them.

    MODEL is a .safetensors file with its config.json beside it, a Hugging Face folder, or a .gguf. The output
    is of the same kind. Blocks are chosen on --text, or on Python's own documentation, and on as
    much text that MODEL writes itself (with --self-text 0, on the former alone).

    Give at most one of --remove, --ratio, --max-perplexity-increase, --fit and --speedup to say when to stop.
    Without, as much is removed as leaves a healed model that still writes as it should.

    The shortened model is then healed, on --text and on text sampled from the model: two matrices of each
    block above the first gap are solved for anew, then all are distilled from the original.

    Under torchrun (torchrun --nproc-per-node N -m tinysleb prune ...), the processes share the search, on one
    machine or several; --memory is per process.
    """
    from tinysleb.commands.prune import prune as run
    from tinysleb.commands.prune_options import PruneOptions

    run(PruneOptions(**options, given=options_given()))


@main.command()
@click.argument("model", type=model_path)
@click.option("--plan", type=path_type, required=True, help="Which blocks to remove.")
@output_option(required=True, help="Where to write, or a folder to write into.")
@click.option(
    "--heal",
    type=click.Choice(WAYS[1:]),
    default=DISTILL,
    show_default=True,
    help="By the closed form alone, or distil as well.",
)
@text_options
@pre_option
@heal_options
@distill_options
@stored_type_option
@seed_option
@compute_options
@dtype_option
@click.option("--resume", is_flag=True, help="Continue an unfinished distillation.")
@click.option(
    "--force", is_flag=True, help="Replace an existing output; apply a plan made for another model."
)
@json_option
@quiet_option
def heal(**options: Any) -> None:
    """Apply a plan to MODEL and heal the result.

    There is no search. Heal again on other text, or with more of it, for example.
    """
    from tinysleb.commands.heal import HealOptions
    from tinysleb.commands.heal import heal as run

    run(HealOptions(**options, given=options_given()))


@main.command()
@click.argument("model", type=model_path, required=False)
@click.option(
    "--gguf",
    "gguf_out",
    is_flag=False,
    flag_value="",
    metavar="[OUT]",
    help="Write a GGUF.  [default OUT: MODEL's name with .gguf, here]",
)
@click.option("--hf", "hf_out", type=path_type, metavar="OUT", help="Write a Hugging Face folder.")
@click.option(
    "--type",
    "type_name",
    metavar="TYPE",
    shell_complete=lambda _context, _option, begun: [name for name in WRITABLE if name.startswith(begun)],
    default="auto",
    show_default=True,
    help=f"Type of a GGUF's matrices: {', '.join(WRITABLE)}; auto: the model's own.",
)
@click.option(
    "--shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Largest size of one weights file in a folder; a larger tensor gets a file of its own.",
)
@click.option(
    "--verify", is_flag=True, help="Read the GGUF back and compare all of it, also in llama.cpp if installed."
)
@click.option(
    "--draft",
    type=path_type,
    metavar="TARGET",
    help="Check that the GGUF can serve as a draft model for TARGET.",
)
@click.option(
    "--imatrix",
    type=path_type,
    metavar="FILE",
    help="llama.cpp's importance matrix, of MODEL or of the model that it was cut from.",
)
@pre_option
@force_option
@json_option
@quiet_option
def export(**options: Any) -> None:
    """Write MODEL as a GGUF or a Hugging Face folder.

    All its blocks are written. Without MODEL, the one *-sleb folder in the current directory is taken.
    """
    from tinysleb.commands.export import ExportOptions
    from tinysleb.commands.export import export as run

    run(ExportOptions(**options, given=options_given()))


@main.command(cls=HealingCommand)
@click.argument("model", type=model_path)
@output_option(help="Where to write, or a folder to write into.  [default: MODEL's name and -draft, here]")
@draft_options
@text_options
@pre_option
@window_options
@seed_option
@compute_options
@dtype_option
@click.option("--heal", type=click.Choice(WAYS), help="As for prune.  [default: distill]")
@heal_options
@distill_options
@stored_type_option
@click.option("--resume", is_flag=True, help="Continue an unfinished search or distillation.")
@click.option(
    "--force", is_flag=True, help="Replace an existing output; write a draft that does not pay, too."
)
@json_option
@quiet_option
def draft(**options: Any) -> None:
    """Shorten MODEL to the draft that makes it generate fastest in llama.cpp.

    Drafting changes no text: MODEL checks every token. The cuts are those with the highest expected speed-up,
    by how often the draft writes what MODEL writes, and by what a token of it costs. Where none pays, that is
    said, and nothing is written.
    """
    from tinysleb.commands.draft import draft as run
    from tinysleb.commands.draft_options import DraftOptions

    run(DraftOptions(**options, given=options_given()))


@main.command()
@click.argument("models", nargs=-1, required=True)
@text_options
@pre_option
@measuring_window_options
@compute_options
@dtype_option
@click.option("--baseline", metavar="MODEL", help="Which of them is the original.  [default: the first]")
@click.option(
    "--kl-divergence-base",
    type=path_type,
    metavar="FILE",
    help="llama.cpp's file of the original's log-probabilities: read if it is there, else written.",
)
@click.option("--hellaswag", type=path_type, metavar="FILE", help="Questions in llama.cpp's format.")
@click.option("--winogrande", type=path_type, metavar="FILE", help="Questions in llama.cpp's format.")
@click.option("--multiple-choice", type=path_type, metavar="FILE", help="Questions in llama.cpp's format.")
@click.option(
    "--choices",
    type=path_type,
    metavar="FILE.jsonl",
    help="Questions as lines of JSON: context, choices, answer (from 0).",
)
@click.option(
    "--questions",
    type=click.IntRange(1),
    metavar="N",
    default=400,
    show_default=True,
    help="Questions of a task, at most.",
)
@click.option(
    "--quants",
    metavar="Q3_K_M,Q2_K",
    help="Also compare the original in these types, made by llama.cpp.",
)
@click.option("--speed", is_flag=True, help="Time GGUFs in llama.cpp.")
@click.option("--show", is_flag=True, help="Print what the models write.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@json_option
@quiet_option
def compare(**options: Any) -> None:
    """Print what MODELS lost, against the first of them.

    Token by token on a text, in answers that they write to twenty questions, and in tasks; and how small and
    fast they are. A model is also PLAN.json, the first one shortened by a plan, or PLAN.json@3, by its first
    three cuts.
    """
    from tinysleb.commands.compare import compare as run
    from tinysleb.commands.compare_options import CompareOptions

    run(CompareOptions(**options, given=options_given()))


@main.command("eval")
@click.argument("models", type=model_path, nargs=-1, required=True)
@text_options
@pre_option
@measuring_window_options
@compute_options
@click.option(
    "--dtype", type=dtype_choice, default="float32", show_default=True, help="Precision of matrix products."
)
@json_option
@quiet_option
def evaluate(**options: Any) -> None:
    """Print the perplexity of MODELS on a text.

    The windows are taken in order from its start, by the tokenizer of each model.
    """
    from tinysleb.commands.evaluate import EvalOptions
    from tinysleb.commands.evaluate import evaluate as run

    run(EvalOptions(**options, given=options_given()))


@main.command()
@click.argument("model", type=model_path)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Print what prune would do with this much memory, and how long it would take.",
)
@window_options
@threads_option
@json_option
@quiet_option
def inspect(**options: Any) -> None:
    """Print what MODEL is, and what prune would need and bring.

    Only headers are read; one block is tried, for the time that prune would take as it is by default. With
    --memory, print what a search would do with that.
    """
    from tinysleb.commands.inspect import InspectOptions
    from tinysleb.commands.inspect import inspect as run

    run(InspectOptions(**options, given=options_given()))


@main.command()
@click.argument("plan", type=path_type)
@click.option("-o", "--output", type=path_type, required=True, help="The HTML file to write.")
@click.option("--compare", type=path_type, metavar="FILE", help="Show also what compare --json printed.")
@force_option
@json_option
@quiet_option
def report(**options: Any) -> None:
    """Show PLAN, or the plan of a shortened model, as a page.

    It has what healing did to text that was held back, the curve of the search, and every candidate of every
    round; with --compare, the measures and texts of a comparison.
    """
    from tinysleb.commands.report import ReportOptions
    from tinysleb.commands.report import report as run

    run(ReportOptions(**options))
