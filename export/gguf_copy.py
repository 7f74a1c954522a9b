"""GGUF → GGUF with fewer blocks: tensors are copied byte for byte, metadata follows the cut. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUFValueType
from gguf.utility import size_label

from tinysleb.checkpoint.architectures import BY_GGUF_NAME
from tinysleb.checkpoint.config import ModelConfig, check_rotation_pattern
from tinysleb.checkpoint.gguf_names import gguf_name, interleaved, is_attention, original_name, rotated_heads
from tinysleb.checkpoint.gguf_source import GgufWeights, plan_in_gguf
from tinysleb.errors import TinyslebError
from tinysleb.export.deci import as_deci, as_written
from tinysleb.export.gguf_check import TensorTypes, check_loadable
from tinysleb.export.gguf_keys import mended_metadata
from tinysleb.export.gguf_writer import tinysleb_metadata, write_all, write_gguf_file
from tinysleb.export.job import Job, Written, compact_json, plan_beside, stored_plan
from tinysleb.formats.files import write_json
from tinysleb.formats.finite import all_finite, not_finite
from tinysleb.formats.gguf_file import GgufFile, GgufTensor, GgufValue
from tinysleb.formats.input_file import read_parts
from tinysleb.plan import Plan
from tinysleb.sublayers import Pair

COPY_BYTES = 1 << 18
"""Few enough to stay in the cache between reading, looking and writing; 4 MiB take twice as long."""
PER_BLOCK = frozenset(
    """
    attention.compress_ratios attention.head_count attention.head_count_kv attention.indexer.types
    attention.recurrent_layers attention.rope_pattern attention.sliding_window_pattern
    expert_feed_forward_length expert_used_count feed_forward_length swiglu_clamp_exp swiglu_clamp_shexp
    xielu.alpha_n xielu.alpha_p xielu.beta xielu.eps
    """.split()  # noqa: SIM905
)
"""Arrays with one entry a block, by their keys without the architecture (`get_key_or_arr` in llama.cpp)."""
NOT_PER_BLOCK = frozenset({"rope.dimension_sections"})
NO_MODEL_KEYS = ("general.", "tokenizer.", "quantize.", "tinysleb.", "split.")
COPIED_ONLY = frozenset(
    """
    apertus arcee command-r deci gemma gptneox internlm2 orion phi2 qwen2moe qwen3moe stablelm starcoder2
    xverse
    """.split()  # noqa: SIM905
)
"""Architectures that are not modelled here, and can be cut by a plan all the same: nothing in their graphs
(`src/models` of llama.cpp) follows from a block's position."""


def write_job(job: Job[GgufWeights]) -> Written:
    """As `tinysleb.export.writers.write`. The tensors stay as they are stored."""
    source, notes = job_source(job)
    metadata = copy_gguf(source, job.out, compact_json(job.plan), job.kept)
    return Written(metadata, (*notes, *_notes(job.source.file)))


def check_job(job: Job[GgufWeights]) -> None:
    """As `tinysleb.export.writers.check_writable`."""
    job_source(job)


def _types(source: GgufFile) -> TensorTypes:
    return {name: (tensor.shape, tensor.type) for name, tensor in source.tensors.items()}


def job_source(job: Job[GgufWeights]) -> tuple[GgufFile, tuple[str, ...]]:
    """What is to be written: the blocks that are kept, and the tensors that were replaced; and notes.

    Raises TinyslebError for what cannot be done with a GGUF.
    """
    path = job.source.path
    if job.pre is not None:
        raise TinyslebError(f"{path} is a GGUF already, and has its pre-tokenizer", "leave --pre out")
    config = job.model.config
    check_rotation_pattern(as_written(config), path)
    shorter = shortened_gguf(job.source.file, job.kept, job.unknown_arrays)
    if job.replaced:
        shorter = with_tensors(shorter, job.replaced, config)
    if config.without:
        shorter = as_deci(shorter, config)
    return _loadable(shorter)


def _loadable(source: GgufFile) -> tuple[GgufFile, tuple[str, ...]]:
    """The same with metadata of the types that llama.cpp reads, and notes about what changed.

    Raises TinyslebError if llama.cpp would not load it all the same.
    """
    metadata, notes = mended_metadata(source.metadata)
    check_loadable(metadata, _types(source), source.path)
    return replace(source, metadata=metadata), notes


def write_unmodelled(file: GgufFile, out: Path, plan: Plan, unknown_arrays: str | None = None) -> Written:
    """Apply a plan to a GGUF whose family is not modelled: its bytes are copied, whatever they mean.

    Raises TinyslebError if what a block does may follow from its position, or the plan is of another size.
    """
    name, blocks = str(file.values().get("general.architecture")), block_count(file)
    known = BY_GGUF_NAME.get(name)
    if name not in COPIED_ONLY and (known is None or known.unrotated_period):
        raise TinyslebError(
            f"{file.path}: what a block does may follow from its position; it is not cut unread"
        )
    if plan.blocks != blocks:
        raise TinyslebError(f"the plan is for a model of {plan.blocks} blocks, {file.path} has {blocks}")
    if halves := [str(pair) for pair in plan.kept if pair.attention != pair.feed_forward]:
        raise TinyslebError(
            f"{file.path}: its blocks are copied unread, and cannot be divided as the plan asks: {halves[0]}",
            "remove whole blocks",
        )
    values = stored_plan(plan, plan_in_gguf(file))
    shorter, notes = _loadable(shortened_gguf(file, plan.kept, unknown_arrays))
    metadata = copy_gguf(shorter, out, compact_json(values), plan.kept)
    write_json(plan_beside(out), values)
    return Written(metadata, (*notes, *_notes(file)))


def _notes(source: GgufFile) -> tuple[str, ...]:
    if any(key.startswith("quantize.imatrix.") for key in source.metadata):
        return ("note: the metadata about an importance matrix are copied; they describe the input",)
    return ()


def shortened_gguf(source: GgufFile, kept: Sequence[Pair], unknown_arrays: str | None = None) -> GgufFile:
    """`source` with only the blocks `kept`, renumbered from 0; its tensors lie where they did.

    `block_count`, `general.name`, `general.size_label` and every array with one entry a block follow
    the cut; all else stays as it is. `unknown_arrays` says what to do with arrays of that length whose
    meaning is not known: `cut` or `keep`. Raises TinyslebError for such an array if it says nothing.
    """
    attentions, feed_forwards = ({pair[half]: i for i, pair in enumerate(kept)} for half in (0, 1))
    tensors = {}
    for original, tensor in source.tensors.items():
        match = re.match(r"blk\.(\d+)\.(.*)", original)
        if match is None:
            tensors[original] = tensor
            continue
        new = (attentions if is_attention(match[2]) else feed_forwards).get(int(match[1]))
        if new is not None:
            tensors[f"blk.{new}.{match[2]}"] = tensor
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    metadata = cut_metadata(source, kept, parameters, unknown_arrays)
    return replace(source, metadata=metadata, tensors=tensors)


def with_tensors(source: GgufFile, tensors: Mapping[str, GgufTensor], config: ModelConfig) -> GgufFile:
    """`source` with some of its tensors replaced: `tensors`, by their Hugging Face names and with their rows
    in that order, lie elsewhere."""
    replaced = {
        gguf_name(name, config.architecture): _in_gguf_order(tensor, rotated_heads(config, name))
        for name, tensor in tensors.items()
    }
    return replace(source, tensors={**source.tensors, **replaced})


def _in_gguf_order(tensor: GgufTensor, heads: int) -> GgufTensor:
    """The same tensor, or a copy beside it, if a GGUF has the rows of `heads` heads interleaved."""
    if not heads:
        return tensor
    path = tensor.file.path
    data = interleaved(tensor.read_bytes().reshape(tensor.shape[0], -1), heads)
    return GgufTensor.write(path.with_name(f"{path.name}.interleaved"), tensor.shape, data, tensor.type)


def copy_gguf(
    source: GgufFile, out: Path, plan_text: str | None, kept: Sequence[Pair] | None = None
) -> dict[str, GgufValue]:
    """Write a GGUF with the bytes of `source`'s tensors, wherever they lie. Returns the metadata written.

    `kept`: what its blocks were, for messages. Raises TinyslebError if `out` cannot be written,
    an input changed meanwhile, or a tensor holds numbers that are not finite.
    """
    tensors = source.tensors
    with ExitStack() as stack:
        inputs = {tensor.file for tensor in tensors.values()}
        files = {each: stack.enter_context(FileIO(each.path, "rb")) for each in inputs}

        def copy(name: str, target: FileIO) -> None:
            tensor, original = tensors[name], original_name(name, kept)
            if type(tensor) is GgufTensor:
                _copy_bytes(files[tensor.file], target, tensor, original)
                return
            data = tensor.read_bytes()
            if not all_finite(data, tensor.type.name):
                raise not_finite(tensor.file.path, original)
            write_all(target, data.data)

        metadata = {**source.metadata, **tinysleb_metadata(plan_text)}
        write_gguf_file(out, metadata, _types(source), source.alignment, copy)
    return metadata


def block_count(source: GgufFile) -> int:
    """How many blocks a GGUF says it has. Raises TinyslebError if it does not say."""
    values = source.values()
    key = f"{values.get('general.architecture')}.block_count"
    count = values.get(key)
    if type(count) is not int or count < 1:
        raise TinyslebError(f"{source.path}: `{key}` should be a number of blocks, found {count!r}")
    return count


def cut_metadata(
    source: GgufFile, kept: Sequence[Pair], parameters: int, unknown_arrays: str | None = None
) -> dict[str, GgufValue]:
    """The metadata of the shorter model."""
    architecture, blocks = source.metadata["general.architecture"].value, block_count(source)
    metadata = dict(source.metadata)
    if len(kept) == blocks:
        return metadata
    for key, item in source.metadata.items():
        per_block = item.type == GGUFValueType.ARRAY and len(item.value) == blocks
        if per_block and _is_cut(source, key, f"{architecture}.", unknown_arrays):
            half = 1 if "feed_forward" in key or "expert" in key else 0
            metadata[key] = replace(item, value=[item.value[pair[half] or 0] for pair in kept])
    _replace(metadata, f"{architecture}.block_count", len(kept))
    texts = {key for key, item in metadata.items() if item.type == GGUFValueType.STRING}
    if "general.name" in texts:
        name = _shortened_name(metadata["general.name"].value, len(kept), blocks)
        _replace(metadata, "general.name", name)
    if "general.size_label" in texts:
        _replace(metadata, "general.size_label", size_label(parameters, parameters, 0, 0))
    return metadata


def _is_cut(source: GgufFile, key: str, prefix: str, unknown_arrays: str | None) -> bool:
    """Whether an array with as many entries as there are blocks has one for each."""
    name = key.removeprefix(prefix)
    if key.startswith(NO_MODEL_KEYS) or name in NOT_PER_BLOCK:
        return False
    if name in PER_BLOCK or unknown_arrays == "cut":
        return True
    if unknown_arrays == "keep":
        return False
    raise TinyslebError(
        f"{source.path}: `{key}` has as many entries as there are blocks, and it is not known whether they "
        "belong to the blocks",
        "if they do, --unknown-arrays cut; if they do not, --unknown-arrays keep",
    )


def _shortened_name(name: str, kept: int, blocks: int) -> str:
    """What a shortened model is called; of one cut twice, the blocks it had at first are named."""
    if cut_before := re.fullmatch(r"(.*) \(\d+ of (\d+) blocks\)", name):
        name, blocks = cut_before[1], int(cut_before[2])
    return f"{name} ({kept} of {blocks} blocks)"


def _replace(metadata: dict[str, GgufValue], key: str, value: object) -> None:
    metadata[key] = replace(metadata[key], value=value)


def _copy_bytes(source: FileIO, target: FileIO, tensor: GgufTensor, name: str) -> None:
    """Copy a tensor's bytes, and look at them, through one buffer, nearly as fast as `cp`: source and target
    are not aligned to pages alike, and `copy_file_range` then takes 1.3 times as long."""
    _, block_bytes = GGML_QUANT_SIZES[tensor.type]
    source.seek(tensor.offset)
    for part in read_parts(source, tensor.nbytes, COPY_BYTES // block_bytes * block_bytes):
        if not all_finite(part, tensor.type.name):
            raise not_finite(tensor.file.path, name)
        write_all(target, part.data)
    tensor.file.check_unchanged(source)
