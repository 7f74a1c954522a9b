"""Write a model: one dispatch by what is written and what it was opened from.

A new output format is one file with the functions `write_job` and `check_job`, and its lines in `WRITERS`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.huggingface_source import HuggingfaceWeights
from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.errors import TinyslebError
from tinysleb.export.deci import check_halves
from tinysleb.export.imatrix import Importance, importance_for, read_imatrix
from tinysleb.export.job import SHARD_BYTES, Job, Written, plan_beside, stored_plan
from tinysleb.formats.files import refuse_existing, write_json
from tinysleb.formats.gguf_file import GgufTensor
from tinysleb.formats.tensor_types import WRITABLE
from tinysleb.heal.healed_weights import Healed
from tinysleb.plan import Plan, Round
from tinysleb.search.cuts import candidates
from tinysleb.sublayers import Pair, cuts_of, pairs_of, sublayers_of, whole_blocks

GGUF, HUGGINGFACE = "gguf", "huggingface"
WRITERS: Mapping[tuple[str, type[Weights]], str] = {
    (GGUF, GgufWeights): "gguf_copy",
    (GGUF, HuggingfaceWeights): "gguf_model",
    (HUGGINGFACE, HuggingfaceWeights): "huggingface",
    (HUGGINGFACE, GgufWeights): "gguf_to_huggingface",
}
"""What is written, and what the model was opened from → the module in this package that does it. It is
imported when it is needed: a GGUF is copied without torch, unless its matrices change their type."""


def write(
    weights: Weights,
    out: Path | str,
    plan: Plan | None = None,
    *,
    output_format: str | None = None,
    type_name: str = "auto",
    pre: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    unknown_arrays: str | None = None,
    imatrix: Path | str | None = None,
    force: bool = False,
) -> Written:
    """Write a model, opened, shortened or healed, as a GGUF or a Hugging Face folder; whole or not at all.

    `plan` is recorded in the output (beside a GGUF, too), and applied if `weights` still has all blocks. Of a
    model that was shortened without one, the blocks are recorded.
    `output_format`: "gguf" or "huggingface"; by default, a GGUF if `out` ends in `.gguf`, else a folder.
    `type_name`: the type of a GGUF's matrices, such as "q8_0"; "auto" is the model's own. `pre`: llama.cpp's
    name of the pre-tokenizer, where it is not recognised. `shard_bytes`: the largest size of one file of a
    folder's weights. `unknown_arrays`: as `shortened_gguf` has it. `imatrix`: llama.cpp's
    importance matrix, of this model or of one that it was cut from. `force`: replace an existing output.

    Raises TinyslebError if the output exists, cannot be written, or cannot express the model.
    """
    asked = _asked_for(
        weights, Path(out), plan, output_format=output_format, type_name=type_name, pre=pre,
        shard_bytes=shard_bytes, unknown_arrays=unknown_arrays, imatrix=imatrix,
    )  # fmt: skip
    for path in asked.outputs:
        refuse_existing(path, force, asked.job.source.path)
    written: Written = asked.writer.write_job(asked.job)
    for path in asked.outputs[1:]:
        write_json(path, asked.job.plan)
    return written


def check_writable(
    weights: Weights,
    out: Path | str,
    plan: Plan | None = None,
    *,
    output_format: str | None = None,
    type_name: str = "auto",
    pre: str | None = None,
    unknown_arrays: str | None = None,
    force: bool = False,
    inputs: Sequence[Path] = (),
) -> None:
    """Raise TinyslebError, before any slow work, for what `write` would refuse of the same; it goes through
    all but the weights: the paths, the config, the tokenizer, the model card, the type.

    `inputs`: other files that the output must not replace. Before a search, ask about
    `with_one_cut(weights, kind, allowed)`: what stands against any cut is found.
    """
    asked = _asked_for(
        weights, Path(out), plan, output_format=output_format, type_name=type_name, pre=pre,
        shard_bytes=SHARD_BYTES, unknown_arrays=unknown_arrays, imatrix=None,
    )  # fmt: skip
    for path in asked.outputs:
        refuse_existing(path, force, asked.job.source.path, *inputs)
    asked.writer.check_job(asked.job)


@dataclass(frozen=True)
class _Asked:
    """The writer's module, what it gets, and what is written: of a GGUF with a plan, that lies beside it."""

    writer: ModuleType
    job: Job[Any]
    outputs: tuple[Path, ...]


def _asked_for(
    weights: Weights,
    out: Path,
    plan: Plan | None,
    *,
    output_format: str | None,
    type_name: str,
    pre: str | None,
    shard_bytes: int,
    unknown_arrays: str | None,
    imatrix: Path | str | None,
) -> _Asked:
    """What will be written, and how. Raises TinyslebError if that is impossible."""
    if plan is not None and not isinstance(weights, Shortened | Healed):
        weights = Shortened(weights, plan.kept)
    source, kept, replaced = _origin(weights)
    plan = plan or _plan_of(source, kept)
    _check_plan(plan, source, kept)
    output_format = output_format or (GGUF if out.suffix == ".gguf" else HUGGINGFACE)
    if source.config.without and kept != whole_blocks(range(source.config.blocks)):
        raise TinyslebError(
            f"{source.path} has blocks without attention or without feed-forward, and is not shortened again",
            "shorten the original, by a plan of all that is to go",
        )
    check_halves(weights.config, kept, source.path)
    if weights.config.without and output_format == HUGGINGFACE:
        raise _no_folder(source)
    name = WRITERS.get((output_format, type(source)))
    if name == "gguf_copy" and type_name != "auto":
        name = "gguf_recode"
    if name is None:
        raise TinyslebError(f"a {type(source).__name__} cannot be written as {output_format!r}")
    if output_format == HUGGINGFACE and out.is_file():
        raise TinyslebError(f"{out} is a file, but the output is a folder", "choose another output")
    values = stored_plan(plan, source.earlier_plan())
    job: Job[Any] = Job(
        model=weights, source=source, kept=kept, replaced=replaced, out=out, plan=values,
        type_name=type_name, pre=pre, shard_bytes=shard_bytes, unknown_arrays=unknown_arrays,
        importance=None if imatrix is None else _importance(Path(imatrix), type_name, kept, values),
    )  # fmt: skip
    beside = (plan_beside(out),) if plan is not None and output_format == GGUF else ()
    return _Asked(import_module(f"tinysleb.export.{name}"), job, (out, *beside))


def _importance(path: Path, type_name: str, kept: Sequence[Pair], plan: Mapping[str, Any]) -> Importance:
    """Raises TinyslebError for a file that is not sound, or cannot be used for this type and model."""
    if (file_type := WRITABLE.get(type_name)) is None or not file_type.matrices.few_bits:
        raise TinyslebError(
            f"an importance matrix changes nothing in a GGUF of type {type_name!r}",
            "leave it out, or choose a type of few bits, such as q4_k_m",
        )
    return importance_for(read_imatrix(path), len(kept), plan)


def _check_plan(plan: Plan | None, source: Weights, kept: tuple[Pair, ...]) -> None:
    if plan is None:
        return
    blocks = source.config.blocks
    if plan.blocks != blocks:
        raise TinyslebError(f"the plan is for a model of {plan.blocks} blocks, {source.path} has {blocks}")
    if plan.kept != kept:
        asked, found = (", ".join(map(str, pairs)) for pairs in (plan.kept, kept))
        raise TinyslebError(f"the plan keeps the blocks {asked}; the model to be written has {found}")


def _no_folder(source: Checkpoint) -> TinyslebError:
    out = shlex.quote(f"{source.path.resolve().name}.gguf")
    first = (
        "choose a GGUF as the output"
        if isinstance(source, GgufWeights)
        else f"make a GGUF and shorten that: tinysleb export {shlex.quote(str(source.path))} --gguf {out}"
    )
    return TinyslebError(
        f"{source.path}: a Hugging Face folder cannot say which blocks have no attention, or no feed-forward",
        first,
    )


def _plan_of(source: Weights, kept: tuple[Pair, ...]) -> Plan | None:
    """What can be said of a model that was shortened without a plan; None for one that was not."""
    blocks = source.config.blocks
    cuts = cuts_of(set(range(2 * blocks)) - set(sublayers_of(kept)))
    return (
        Plan(blocks, len(cuts), {}, rounds=tuple(Round(cut, math.nan, {}) for cut in cuts)) if cuts else None
    )


def own_format(weights: Weights) -> str:
    """The format that a model was opened from: "gguf" or "huggingface"."""
    return GGUF if isinstance(_origin(weights)[0], GgufWeights) else HUGGINGFACE


def with_one_cut(weights: Weights, kind: str, allowed: range) -> Weights:
    """The model without the first of what a search of this kind may leave out of the blocks `allowed`, to ask
    `check_writable` about before."""
    stack = Plan(weights.config.blocks, 0, {}).stack
    cuts = candidates(stack, allowed, kind) if weights.config.blocks > 1 else []
    return Shortened(weights, pairs_of([s for s in stack if s not in cuts[0]])) if cuts else weights


def _origin(weights: Weights) -> tuple[Checkpoint, tuple[Pair, ...], Mapping[str, GgufTensor]]:
    """What a model was opened as, which of its blocks are left, and the tensors that were replaced."""
    replaced: Mapping[str, GgufTensor] = {}
    if isinstance(weights, Healed):
        replaced, weights = weights.healed.tensors, weights.source
    kept = whole_blocks(range(weights.config.blocks))
    if isinstance(weights, Shortened):
        kept, weights = weights.kept, weights.source
    if not isinstance(weights, GgufWeights | HuggingfaceWeights):
        raise TypeError(f"a {type(weights).__name__} was not opened from files, and has no writer")
    return weights, kept, replaced
