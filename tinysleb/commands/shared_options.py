"""Options that several commands declare alike: click decorators, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from tinysleb.commands.console import QUIET
from tinysleb.commands.options import DISTILL_MINUTES, DISTILL_TOKENS
from tinysleb.commands.parsing import Command, shared
from tinysleb.commands.values import ModelPath
from tinysleb.formats.tensor_types import WRITABLE

path_type, model_path = click.Path(path_type=Path), ModelPath()
dtype_choice = click.Choice(["auto", "float32", "bfloat16", "float16"])
LARGEST_SEED = 2**63 - 1


def _be_quiet(context: click.Context, _option: click.Parameter, quiet: bool) -> None:
    """What a console asks for, wherever it is made."""
    context.meta[QUIET] = quiet


text_options = shared(
    click.option(
        "--text",
        "texts",
        type=path_type,
        multiple=True,
        help="A text file in UTF-8, or chats, one in each line of a .jsonl; repeatable.",
    ),
    click.option("--tokens", "token_file", type=path_type, help="Windows as a .npy array, int32 [n, T]."),
)


def _window_options(usual: str, length: int) -> Callable[[Command], Command]:
    """How many windows there are unless it is said, in words, and of how many tokens."""
    return shared(
        click.option(
            "--windows", type=click.IntRange(1), metavar="N", help=f"Number of windows.  [default: {usual}]"
        ),
        click.option(
            "--window-length", type=click.IntRange(2), metavar="N", default=length, show_default=True,
            help="Tokens in a window.",
        ),
    )  # fmt: skip


window_options, measuring_window_options = _window_options("16", 256), _window_options("all", 1024)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(1), metavar="N",
    help="Processor threads.  [default: all cores that this process may use]",
)  # fmt: skip
compute_options = shared(
    click.option(
        "--memory", metavar="SIZE", default="4GiB", show_default=True,
        help="Memory limit for the whole process.",
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
        help="Where to compute.",
    ),
    threads_option,
)  # fmt: skip
dtype_option = click.option(
    "--dtype", type=dtype_choice, default="auto", show_default=True, help="Precision of matrix products."
)
heal_options = shared(
    click.option(
        "--heal-tokens", type=click.IntRange(2), metavar="N", default=32768, show_default=True,
        help="Tokens to heal on, including those of --self-text.",
    ),
    click.option(
        "--self-text", type=click.IntRange(0), metavar="N",
        help="How many of the --heal-tokens are sampled from the model itself.  [default: half]",
    ),
)  # fmt: skip
stored_type_option = click.option(
    "--type",
    "type_name",
    type=click.Choice(list(WRITABLE)),
    metavar="TYPE",
    help="Type of a GGUF's matrices, as for export.  [default: as in MODEL]",
)
distill_options = shared(
    click.option(
        "--distill-tokens", type=click.IntRange(1), metavar="N", default=DISTILL_TOKENS, show_default=True,
        help="Tokens to distil on, three in four sampled from the model itself.",
    ),
    click.option(
        "--minutes", type=click.FloatRange(0, min_open=True), metavar="N",
        help="Distil for so many minutes; with --distill-tokens, at most.  "
        f"[default: at most {DISTILL_MINUTES}, without --distill-tokens]",
    ),
)  # fmt: skip
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, LARGEST_SEED),
    default=0,
    metavar="N",
    show_default=True,
    help="Seed for choosing windows and for sampling.",
)
pre_option = click.option(
    "--pre",
    metavar="NAME",
    help="llama.cpp's name for the pre-tokenizer, where MODEL does not say it or it is not recognised.",
)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
output_option = partial(click.option, "-o", "--output", type=click.Path())
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet,
    help="Print results and errors alone, neither messages nor progress.",
)  # fmt: skip
