"""`tinysleb export`: a model as a GGUF or as a Hugging Face folder, with all its blocks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from tinysleb.checkpoint.open_model import open_model
from tinysleb.commands.console import Console, print_json, print_line
from tinysleb.commands.opening import opened
from tinysleb.commands.options import Given, refuse_unused
from tinysleb.commands.outputs import output_in, sole_command
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.export.draft import check_draft, cost_warning
from tinysleb.export.writers import GGUF, HUGGINGFACE, write
from tinysleb.formats.files import refuse_existing
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.units import format_bytes, parse_bytes

GGUF_ONLY = ("type_name", "pre", "verify", "draft", "imatrix")


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`. `gguf_out`: '' for a name after the model."""

    model: Path | None
    gguf_out: str | None
    hf_out: Path | None
    type_name: str
    shard_size: str
    verify: bool
    draft: Path | None
    pre: str | None
    imatrix: Path | None
    force: bool
    as_json: bool
    given: Given = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a usage error for options that do not go together."""
        if (self.gguf_out is None) == (self.hf_out is None):
            raise click.UsageError("Give either --gguf [OUT] or --hf OUT.")
        if self.hf_out is None:
            refuse_unused(self.given, ("shard_size",), "A GGUF is one file")
        else:
            refuse_unused(self.given, GGUF_ONLY, "A folder is not a GGUF")
        if self.model is None and self.gguf_out and Path(self.gguf_out).is_dir():
            raise click.UsageError(
                f"{self.gguf_out} was read as OUT. Name the model first: export MODEL --gguf."
            )


def export(options: ExportOptions) -> None:
    """Write the model, check it if that was asked for, and print what was written."""
    model = options.model or _only_shortened_folder()
    if options.hf_out is not None:
        with sole_command(options.hf_out):
            _export_folder(model, options.hf_out, options)
        return
    name = model.resolve().name if model.is_dir() else model.stem
    default = Path(f"{name}.gguf")
    out = output_in(options.gguf_out, default, True) if options.gguf_out else default
    with sole_command(out):
        _export_gguf(model, out, options)


def _export_folder(model: Path, out: Path, options: ExportOptions) -> None:
    console = Console()
    weights = opened(model, console)
    size = parse_bytes(options.shard_size)
    written = write(weights, out, output_format=HUGGINGFACE, shard_bytes=size, force=options.force)
    for note in written.notes:
        console.say(note)
    if options.as_json:
        print_json({"output": str(out), "blocks": weights.config.blocks})
    else:
        print_line(f"{out}: {weights.config.blocks} blocks")


def _export_gguf(model: Path, out: Path, options: ExportOptions) -> None:
    console = Console()
    weights = opened(model, console)
    target = None if options.draft is None else read_gguf(options.draft)  # before the slow work
    if target is not None:
        refuse_existing(out, options.force, target.path)
    written = write(
        weights, out, output_format=GGUF, type_name=options.type_name, pre=options.pre,
        imatrix=options.imatrix, force=options.force,
    )  # fmt: skip
    for note in written.notes:
        console.say(note)
    size = out.stat().st_size
    if options.as_json:
        print_json({"output": str(out), "blocks": weights.config.blocks, "bytes": size})
    else:
        print_line(f"{out}: {weights.config.blocks} blocks, {format_bytes(size)}")
    if options.verify:
        _verify(model, out, written.metadata, options.as_json, console)
    if target is not None:
        draft = read_gguf(out)
        check_draft(draft, target)
        if warning := cost_warning(draft, target):
            console.say(warning)
        words = ["llama-server", "-m", target.path, "-md", out, "--spec-type", "draft-simple"]
        command = shlex.join(map(str, words))
        tell = console.say if options.as_json else print_line
        tell(f"{out} can draft for {target.path}: {command}")


def _verify(
    model: Path, out: Path, metadata: Mapping[str, GgufValue], as_json: bool, console: Console
) -> None:
    from tinysleb.export.llama_cpp import is_installed
    from tinysleb.export.verify import check_metadata, check_tensors, compare_with_llama_cpp

    tell = console.say if as_json else print_line
    check_metadata(out, metadata)
    checks = list(check_tensors(out, open_model(model)))
    for check in [] if as_json else checks:
        values = f"{check.smallest:.4g} … {check.largest:.4g}"
        print_line(f"{check.name:<32} {check.type:<5} {check.sha256[:16]}  {values}, error {check.error:.2g}")
    tell(f"{len(checks)} tensors read back: all match")
    if not is_installed():
        console.say(f"llama.cpp was not asked, since it is not installed: run {pip_install('llamacpp')}")
        return
    difference = compare_with_llama_cpp(out)
    tell(f"llama.cpp loads it; its logits differ by {difference:.2%} of their spread")


def _only_shortened_folder() -> Path:
    folders = sorted(path for path in Path().glob("*-sleb") if path.is_dir())
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise TinyslebError(
            f"expected exactly one *-sleb folder in the current directory, found {found}",
            "name the model: tinysleb export MODEL --gguf",
        )
    return folders[0]
