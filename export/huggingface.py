"""Weights → Hugging Face folder: config, shards, and the files around them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.config_keys import PER_BLOCK_KEYS
from tinysleb.checkpoint.gguf_names import rotated_heads
from tinysleb.checkpoint.huggingface_source import INDEX_NAME, SINGLE_NAME, HuggingfaceWeights
from tinysleb.checkpoint.weights import Shortened, Weights, total_bytes
from tinysleb.errors import TinyslebError
from tinysleb.export.front_matter import CARD_NAME, read_card
from tinysleb.export.job import Job, Written
from tinysleb.export.model_card import model_card
from tinysleb.formats.files import read_json_object, replaced_folder, valid_text
from tinysleb.formats.finite import all_finite, not_finite
from tinysleb.formats.input_file import read_parts
from tinysleb.formats.model_files import model_files, skipped_files
from tinysleb.formats.safetensors_file import SafetensorsEntry, as_bytes, write_safetensors
from tinysleb.formats.tensor_types import TENSOR_TYPES
from tinysleb.model.chunks import chunks
from tinysleb.sublayers import Pair

if TYPE_CHECKING:
    from torch import Tensor

PART_BYTES = 1 << 18
"""As `COPY_BYTES` in `gguf_copy.py`."""
CODE_KEY = "auto_map"
WITH_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files that may name code to load the model with, by that key."""
DTYPE_KEYS = ("dtype", "torch_dtype")
DTYPES = frozenset(record.torch for record in TENSOR_TYPES.values() if record.torch)
EMPTY: Mapping[str, SafetensorsEntry] = MappingProxyType({})


def write_job(job: Job[HuggingfaceWeights]) -> Written:
    """As `tinysleb.export.writers.write`: the folder's other files are copied."""
    folder, texts = job.source.folder, folder_texts(job)
    stored = stored_entries(job.source, job.kept, job.replaced)
    with replaced_folder(job.out) as temporary:
        for file in model_files(folder):
            copy = temporary / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_shards(job.model, temporary, job.shard_bytes, stored)
    unknown_code = [f"`{CODE_KEY}` of {name}" for name in _with_code(folder)]
    skipped = [f"not copied: {what}" for what in skipped_files(folder)]
    left_out = [f"note: left out, since the code that it names is not copied: {', '.join(unknown_code)}"]
    return Written(notes=(*skipped, *(left_out if unknown_code else [])))


def check_job(job: Job[HuggingfaceWeights]) -> None:
    """As `tinysleb.export.writers.check_writable`."""
    folder_texts(job)


def folder_texts(job: Job[HuggingfaceWeights]) -> dict[str, str]:
    """The files that are not copied as they are, by name: the config of the shorter model, its plan, and a
    card that says what was done. Raises TinyslebError for an input that cannot be read."""
    folder, plan = job.source.folder, job.plan
    original = read_json_object(folder / "config.json")
    values: dict[str, Any] = {"config.json": cut_config(original, job.kept, job.model.config)}
    for name in _with_code(folder):
        if name != "config.json":
            values[name] = _without_code(read_json_object(folder / name))
    if plan:
        values["plan.json"] = plan
    texts = {name: json_text(value) for name, value in values.items()}
    if len(job.kept) < original["num_hidden_layers"]:
        base_model = str(original.get("_name_or_path", ""))
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base_model):  # a path on somebody's machine
            base_model = valid_text(folder.resolve().name)
        card = folder / CARD_NAME
        texts[CARD_NAME] = model_card(read_card(card) if card.is_file() else "", base_model, plan)
    return texts


def _with_code(folder: Path) -> list[str]:
    """The files that name code of the model's own; of those that cannot be read nothing is known."""
    found = []
    for name in WITH_CODE:
        with suppress(TinyslebError):
            if (folder / name).is_file() and CODE_KEY in read_json_object(folder / name):
                found.append(name)
    return found


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != CODE_KEY}


def stored_entries(
    source: HuggingfaceWeights, kept: Sequence[Pair], replaced: Container[str]
) -> dict[str, SafetensorsEntry]:
    """The tensors of `source` that its blocks `kept` are written with, by their new names: not those that are
    `replaced`, nor those in FP8, which are written as bfloat16."""
    model = Shortened(source, tuple(kept))
    names = {name: model.original_name(name) for name in model.tensors if name not in replaced}
    return {name: source.entries[name_] for name, name_ in names.items() if name_ not in source.scales}


def cut_config(config: dict[str, Any], kept: Sequence[Pair], shape: ModelConfig) -> dict[str, Any]:
    """`config.json` of the shorter model, whose shape is `shape`: lists with an entry for
    each block follow the attention of those `kept`.

    What follows from a block's position in the original is written out, since positions change. Weights
    are written unquantised, so `quantization_config` goes; and so does `auto_map`, since the code that it
    names is not copied: transformers knows the family. A dtype that is none, such as `auto`, which
    transformers does not load, goes as well.
    """
    blocks = config["num_hidden_layers"]
    cut: dict[str, Any] = {
        key: [value[pair.attention or 0] for pair in kept]
        for key in PER_BLOCK_KEYS
        if isinstance(value := config.get(key), list) and len(value) == blocks
    }
    if shape.unrotated:
        cut["no_rope_layers"] = [int(not still) for still in shape.unrotated]
    if shape.attention_windows and "max_window_layers" in shape.architecture.keys:
        kinds = ("full_attention", "sliding_attention")
        cut["layer_types"] = [kinds[window > 0] for window in shape.attention_windows]
    gone = {"quantization_config", *(key for key in DTYPE_KEYS if config.get(key) not in (None, *DTYPES))}
    plain = {key: value for key, value in config.items() if key not in gone}
    if not shape.tied and plain.get("tie_word_embeddings"):  # a head of its own, which older readers drop
        cut["tie_word_embeddings"] = False
    return _without_code(plain) | cut | {"num_hidden_layers": len(kept)}


def write_shards(
    weights: Weights, folder: Path, shard_bytes: int, stored: Mapping[str, SafetensorsEntry] = EMPTY
) -> None:
    """The weights as one file or, if they have more than `shard_bytes`, several and their index."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in weights.tensors.items():
        if shards[-1] and size + info.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    if len(shards) == 1:
        _write_shard(weights, shards[0], folder / SINGLE_NAME, stored)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(weights, names, folder / file, stored)
        weight_map |= dict.fromkeys(names, file)
    total = total_bytes(weights)
    write_json_file(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(
    weights: Weights, names: Sequence[str], path: Path, stored: Mapping[str, SafetensorsEntry]
) -> None:
    tensors = {name: (weights.tensors[name].type, weights.tensors[name].shape) for name in names}

    def finite_parts(name: str) -> Iterator[Tensor]:
        parts = _copied_parts(stored[name]) if name in stored else _parts(weights, name)
        for part in parts:
            if not all_finite(as_bytes(part), tensors[name][0]):
                raise not_finite(weights.path, name)
            yield part

    write_safetensors(path, tensors, finite_parts)


def _copied_parts(entry: SafetensorsEntry) -> Iterator[Tensor]:
    """A tensor's bytes as they lie in its file."""
    import torch

    with FileIO(entry.file.path, "rb") as file:
        file.seek(entry.offset)
        yield from map(torch.from_numpy, read_parts(file, entry.nbytes, PART_BYTES))
        entry.file.check_unchanged(file)


def _parts(weights: Weights, name: str) -> Iterator[Tensor]:
    """A tensor's rows, so many at a time that they stay in the processor's cache."""
    info = weights.tensors[name]
    if len(info.shape) == 1 or rotated_heads(weights.config, name):  # which a GGUF reads whole for any row
        yield weights.tensor(name)
        return
    rows = info.shape[0]
    for start, stop in chunks(rows, max(1, PART_BYTES * rows // info.nbytes)):
        yield weights.tensor(name, start, stop)


def write_json_file(path: Path, value: Any) -> None:
    """JSON as Hugging Face writes it."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """The text of such a file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
