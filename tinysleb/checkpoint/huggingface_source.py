"""A Hugging Face folder, or one `.safetensors` file with its `config.json` beside it, as `Weights`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinysleb.checkpoint.config import ModelConfig, config_from_huggingface
from tinysleb.checkpoint.family import unused_settings
from tinysleb.checkpoint.settings import SettingsReader, not_modelled
from tinysleb.checkpoint.tokenizer_folder import TokenizerFolder, read_tokenizer_folder
from tinysleb.checkpoint.weights import TensorInfo, check_complete
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_json_object, read_text
from tinysleb.formats.model_files import model_files
from tinysleb.formats.safetensors_file import (
    SafetensorsEntry,
    read_safetensors_header,
    read_safetensors_rows,
    same_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PLAN_NAME = "plan.json"
TEMPLATE_NAME = "chat_template.jinja"
HEAD = "lm_head.weight"
HEADER_BYTES_PER_TENSOR = 200
LONGEST_NAME_BYTES = 255
"""Of a file, on every file system in use; a longer one cannot even be looked for."""
SCALE_SUFFIXES = (".weight_scale_inv", ".weight_scale")
"""Endings of the names of FP8 scales; whichever is used, the matrix is multiplied by them."""


@dataclass(frozen=True)
class HuggingfaceWeights:
    """A checkpoint opened by `open_huggingface`. `folder` holds the config and tokenizer files.

    `scales` has the factors of each matrix stored in FP8: one for every block of `scale_block` rows and
    columns, or a single one for the whole matrix.
    """

    path: Path
    folder: Path
    config: ModelConfig
    entries: Mapping[str, SafetensorsEntry]
    scales: Mapping[str, SafetensorsEntry]
    scale_block: tuple[int, int]
    remarks: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """As in `Weights`. FP8 comes out, and counts, as bfloat16."""
        return {
            name: TensorInfo(entry.shape, "BF16", 2 * entry.nbytes)
            if name in self.scales
            else TensorInfo(entry.shape, entry.dtype, entry.nbytes)
            for name, entry in self.entries.items()
        }

    def chat_template(self) -> str:
        """As in `Checkpoint`: of a file of its own, or of `tokenizer_config.json`."""
        if (self.folder / TEMPLATE_NAME).is_file():
            return read_text(self.folder / TEMPLATE_NAME)
        template: Any = None
        with suppress(TinyslebError):
            template = read_json_object(self.folder / "tokenizer_config.json").get("chat_template")
        if isinstance(template, list):  # several by name
            named = [item for item in template if isinstance(item, dict)]
            template = next((item.get("template") for item in named if item.get("name") == "default"), None)
        return template if isinstance(template, str) else ""

    def earlier_plan(self) -> dict[str, Any]:
        """As in `Checkpoint`."""
        with suppress(TinyslebError):
            return read_json_object(self.folder / PLAN_NAME)
        return {}

    def tokenizer_files(self) -> TokenizerFolder:
        """As in `Checkpoint`."""
        return read_tokenizer_folder(self.folder)

    def bytes_around(self, tensors: int) -> int:
        """As in `Checkpoint`."""
        copied = sum(file.stat().st_size for file in model_files(self.folder))
        return HEADER_BYTES_PER_TENSOR * tensors + copied

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`."""
        rows = read_safetensors_rows(self.entries[name], start, stop)
        if name not in self.scales:
            return rows
        import torch

        scales = read_safetensors_rows(self.scales[name]).float().reshape(self._grid(name))
        row = torch.arange(start, start + len(rows)) // self.scale_block[0]
        column = torch.arange(rows.shape[1]) // self.scale_block[1]
        whole = scales.numel() == 1
        return (rows.float() * (scales if whole else scales[row][:, column])).bfloat16()

    def _grid(self, name: str) -> tuple[int, int]:
        shape, block = self.entries[name].shape, self.scale_block
        if math.prod(self.scales[name].shape) == 1:
            return (1, 1)
        return (-(-shape[0] // block[0]), -(-shape[1] // block[1]))


def open_huggingface(path: Path) -> HuggingfaceWeights:
    """Open a folder or a `.safetensors` file. Raises TinyslebError as `open_model` does."""
    folder = path if path.is_dir() else path.parent
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise TinyslebError(
            f"there is no config.json in {folder}",
            "it comes with the model; put it beside the weights",
        )
    values = read_json_object(config_path)
    entries = _read_shards(path) if path.is_dir() else _read_file(path)
    values = values | {"tie_word_embeddings": _tied(values, entries)}
    config = config_from_huggingface(values, str(config_path))
    scales = {_scaled(name): entry for name, entry in entries.items() if name.endswith(SCALE_SUFFIXES)}
    needed = {
        name: entry
        for name, entry in entries.items()
        if not _unused(name, config) and not name.endswith(SCALE_SUFFIXES)
    }
    quantization = SettingsReader(values, str(config_path)).mapping("quantization_config")
    method = quantization.get("quant_method")
    try:
        check_complete(config, {name: entry.shape for name, entry in needed.items()}, path)
    except TinyslebError as error:
        if quantization:
            raise _quantised(config_path, method) from error
        raise
    _check_scales(needed, scales, path)
    block = SettingsReader(quantization, str(config_path)).integers("weight_block_size", least=1) or [1, 1]
    if len(block) != 2:
        raise not_modelled(str(config_path), "weight_block_size", block, "two numbers of rows and columns")
    remarks = tuple(_remarks(values, config, config_path))
    weights = HuggingfaceWeights(path, folder, config, needed, scales, (block[0], block[1]), remarks)
    _check_grids(weights)
    return weights


def _tied(values: Mapping[str, Any], entries: Mapping[str, SafetensorsEntry]) -> Any:
    """What `tie_word_embeddings` comes to: a head of its own is used, whatever the config says, as in
    transformers 5 and llama.cpp; one that is a copy of the embedding is not one of its own."""
    head, embedding = entries.get(HEAD), entries.get("model.embed_tokens.weight")
    tied = values.get("tie_word_embeddings")
    if head is None:
        return True if tied is None else tied
    return tied if tied and embedding is not None and same_bytes(head, embedding) else False


def _quantised(config_path: Path, method: object) -> TinyslebError:
    return TinyslebError(
        f"{config_path}: `quantization_config` says the weights are quantised by {shown(method)}",
        "take the unquantised checkpoint, or a GGUF of the model",
    )


def _remarks(values: Mapping[str, Any], config: ModelConfig, config_path: Path) -> Iterator[str]:
    if unused := unused_settings(values, config.architecture):
        yield f"note: {config_path} has settings that nothing makes use of: {', '.join(unused)}"
    method = (values.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "fp8"):
        left_over = f"`quantization_config` ({shown(method)}) is ignored"
        yield f"note: {config_path}: {left_over}, since no weight is quantised"


def _scaled(name: str) -> str:
    return name.rpartition("_scale")[0]


def _check_scales(
    entries: Mapping[str, SafetensorsEntry], scales: Mapping[str, SafetensorsEntry], path: Path
) -> None:
    for name, entry in entries.items():
        if (entry.dtype == "F8_E4M3") != (name in scales):
            found = "no scale" if name not in scales else f"a scale, but is stored as {entry.dtype}"
            raise TinyslebError(f"{path}: tensor {name!r} has {found}; FP8 weights need one, others none")


def _check_grids(weights: HuggingfaceWeights) -> None:
    for name, entry in weights.scales.items():
        expected = math.prod(weights._grid(name))
        if math.prod(entry.shape) != expected:
            raise TinyslebError(
                f"{weights.path}: the scales of {name!r} have the shape {list(entry.shape)}, "
                f"its blocks of {list(weights.scale_block)} need {expected}"
            )


def _unused(name: str, config: ModelConfig) -> bool:
    """Buffers that older checkpoints store, and a head that is tied to the embedding."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied and name == HEAD)


def _read_file(path: Path) -> dict[str, SafetensorsEntry]:
    if re.search(r"-\d{5}-of-\d{5}\.safetensors$", path.name):
        raise TinyslebError(f"{path} is one shard of several", f"give the folder: {path.parent}")
    return read_safetensors_header(path)


def _read_shards(folder: Path) -> dict[str, SafetensorsEntry]:
    if (folder / SINGLE_NAME).is_file():  # which counts more than an index, as in transformers
        return read_safetensors_header(folder / SINGLE_NAME)
    if (folder / INDEX_NAME).is_file():
        return _read_indexed(folder, folder / INDEX_NAME)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_safetensors_header(files[0])
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
        raise TinyslebError(
            f"{folder} holds pickled weights, which can run code when loaded and are not read",
            "take the safetensors version of the model",
        )
    found = ", ".join(file.name for file in files) or "none"
    raise TinyslebError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}; .safetensors files: {found}")


def _read_indexed(folder: Path, index_path: Path) -> dict[str, SafetensorsEntry]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TinyslebError(f"{index_path}: `weight_map` should be an object, found {shown(weight_map)}")
    shards = sorted({_shard_name(value, index_path) for value in weight_map.values()})
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise TinyslebError(
            f"{index_path} names {len(absent)} shards that are not there: {', '.join(absent)}",
            "fetch the missing files into the same folder",
        )
    entries: dict[str, SafetensorsEntry] = {}
    for shard in shards:
        for name, entry in read_safetensors_header(folder / shard).items():
            if weight_map.get(name) != shard:
                raise TinyslebError(
                    f"{folder / shard} holds {name!r}, which {index_path.name} places in "
                    f"{weight_map.get(name)!r}"
                )
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries and name != HEAD:  # a tied one may be listed and nowhere stored
            raise TinyslebError(f"{folder / shard} lacks {name!r}, which {index_path.name} places there")
    return entries


def _shard_name(value: object, index_path: Path) -> str:
    name = value if isinstance(value, str) else ""
    in_folder = Path(name).name == name and len(name.encode()) <= LONGEST_NAME_BYTES
    if not in_folder or not name.endswith(".safetensors"):
        raise TinyslebError(
            f"{index_path} names the shard {shown(value)}",
            "a shard must be a .safetensors file in the same folder",
        )
    return name
