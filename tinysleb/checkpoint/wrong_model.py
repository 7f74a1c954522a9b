"""What is given as a model and is none, or not a whole one: adapters, parts, caches, formats of others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinysleb.errors import TinyslebError, listed, shown
from tinysleb.formats.files import read_json_object
from tinysleb.formats.model_files import READ_NAMES
from tinysleb.formats.safetensors_file import read_safetensors_header
from tinysleb.formats.wrong_file import SUFFIXES, TAKE_ANOTHER, check_no_pointer, wrong_file

ADAPTER_CONFIG = "adapter_config.json"
MERGE_FIRST = "merge it into its base model first (peft: `merge_and_unload`), and give the merged model"
MOST_LISTED = 4
GGUF_KINDS = {
    "adapter": ("is a LoRA adapter, not a model", "merge it into its base model first (llama-export-lora)"),
    "mmproj": (
        "is the image or sound encoder of a multimodal model (an mmproj file)",
        "give the GGUF of its language model, which comes beside it",
    ),
    "imatrix": ("is an importance matrix, not a model", "it goes with `tinysleb export --imatrix`"),
}
"""What `general.type` of a GGUF says that is not a model, and what to do."""


def refuse_absent(path: Path) -> None:
    """Raise TinyslebError if there is nothing at a path."""
    if path.exists():
        return
    hint = (
        "" if path.parent.exists() or path.suffix in (".gguf", ".safetensors") else _how_to_fetch(str(path))
    )
    raise TinyslebError(f"there is no file or folder {path}", hint)


def _how_to_fetch(name: str) -> str:
    """A hint, if what is not there may be a repository of models: its name, with a file type as llama.cpp
    takes it, or its address."""
    match = re.fullmatch(r"(?:https?:/+[^/]+/)?([\w.-]+)/([\w.-]+)(?::([\w.-]+))?/?", name)
    if match is None:
        return "models are not downloaded: fetch it first (`hf download`)" if "http" in name[:4] else ""
    owner, model, type_name = match.groups()
    files = f' --include "*{type_name}*"' if type_name else ""
    return (
        f"models are not downloaded: hf download {owner}/{model}{files} --local-dir {model}, and give {model}"
    )


def refuse_wrong_folder(folder: Path) -> None:
    """Raise TinyslebError if a folder is known to hold something else than a model's safetensors."""
    _check_fetched(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    whole = "config.json" in names and not all(name.startswith("adapter_") for name in weights)
    if ADAPTER_CONFIG in names and not whole:
        raise _adapter(folder, folder / ADAPTER_CONFIG)
    if "config.json" in names:
        _refuse_mlx(folder / "config.json")
    if not weights or "config.json" not in names:
        _refuse_other_layout(folder, names)
    if not weights:
        _refuse_other_weights(folder, names)


def refuse_wrong_file(path: Path) -> None:
    """Raise TinyslebError if a file that is not a GGUF is known to be something else than a model."""
    if error := wrong_file(path):
        raise error
    if _is_split_by_hand(path.name):
        raise _split_by_hand(path)
    config = path.parent / "config.json"
    if path.suffix == ".json" and config.is_file():
        raise TinyslebError(f"{path} is one of a model's files", f"give the folder: {path.parent}")
    if path.suffix != ".safetensors":
        return
    _check_fetched(path.parent)
    if config.is_file():
        _refuse_mlx(config)
    if path.name.startswith("consolidated"):
        raise _original_format(path)
    names = read_safetensors_header(path)
    if names and all("lora_" in name for name in names):
        raise _adapter(path, path.parent / ADAPTER_CONFIG)


def refuse_wrong_gguf(values: Mapping[str, Any], tensors: Iterable[str], path: Path) -> None:
    """Raise TinyslebError if the metadata of a GGUF say that it is not a model, or not a whole one."""
    kind = values.get("general.type")
    if values.get("general.architecture") == "clip":
        kind = "mmproj"
    if isinstance(kind, str) and kind in GGUF_KINDS:
        what, hint = GGUF_KINDS[kind]
        raise TinyslebError(f"{path} {what}", hint)
    if not any(tensors):
        raise TinyslebError(
            f"{path} holds no tensors, only metadata and perhaps a vocabulary",
            "take a GGUF of the whole model",
        )


def explained_truncation(path: Path, error: TinyslebError) -> TinyslebError:
    """The error of a GGUF that could not be read, or what is known of files with such a name."""
    return _split_by_hand(path) if _is_split_by_hand(path.name) else error


def _check_fetched(folder: Path) -> None:
    """Raise TinyslebError if one of the files that are copied or read beside the weights is a pointer."""
    for name in sorted(READ_NAMES):
        if (folder / name).is_file():
            check_no_pointer(folder / name)


def _adapter(where: Path, config: Path) -> TinyslebError:
    base: object = None
    with suppress(TinyslebError):
        base = read_json_object(config).get("base_model_name_or_path")
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    return TinyslebError(f"{where} is an adapter{of} (LoRA or the like), not a model", MERGE_FIRST)


def _refuse_mlx(config: Path) -> None:
    """MLX stores how it quantised under a key of its own, and matrices packed in integers."""
    quantization = read_json_object(config).get("quantization")
    if isinstance(quantization, dict) and "group_size" in quantization and "bits" in quantization:
        raise TinyslebError(
            f"{config}: `quantization` says the weights are quantised for MLX "
            f"({shown(quantization['bits'])} bits)",
            "take the unquantised checkpoint, or a GGUF of the model",
        )


def _refuse_other_layout(folder: Path, names: list[str]) -> None:
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        raise TinyslebError(
            f"{folder} holds GGUF files: {listed(ggufs, MOST_LISTED)}", f"name one: {folder / ggufs[0]}"
        )
    if (folder / "snapshots").is_dir():
        found = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
        name = found[-1] if found else folder / "snapshots" / "…"
        raise TinyslebError(f"{folder} is a model's place in the Hugging Face cache", f"give {name}")
    if "model_index.json" in names:
        raise TinyslebError(f"{folder} is a diffusers pipeline, not a language model")
    if "params.json" in names and any(name.startswith("consolidated") for name in names):
        raise _original_format(folder)


def _refuse_other_weights(folder: Path, names: list[str]) -> None:
    other = [name for name in names if Path(name).suffix in SUFFIXES]
    if "config.json" in names and all(name.endswith((".bin", ".pth")) for name in other):
        return  # which the reader of folders explains
    if other:
        raise TinyslebError(f"{folder / other[0]} {SUFFIXES[Path(other[0]).suffix]}", TAKE_ANOTHER)
    inside = [name for name in names if (folder / name / "config.json").is_file()]
    if inside and "config.json" not in names:
        raise TinyslebError(
            f"{folder} has no config.json, but folders with one: {listed(inside, MOST_LISTED)}",
            f"name one: {folder / inside[0]}",
        )


def _original_format(path: Path) -> TinyslebError:
    return TinyslebError(
        f"{path} is in the format that Meta and Mistral publish beside that of Hugging Face",
        "take the files named model.safetensors, or model-00001-of-0000N.safetensors and so on, "
        "with their config.json",
    )


def _is_split_by_hand(name: str) -> bool:
    return re.search(r"[.-](split-[a-z]|part-?\d+(of\d+)?|0\d\d)$", name) is not None


def _split_by_hand(path: Path) -> TinyslebError:
    whole = re.sub(r"[.-](split-[a-z]|part-?\d+(of\d+)?|0\d\d)$", "", path.name)
    rest = path.name[len(whole) :]
    pattern = re.sub(r"([a-z]|\d+(of\d+)?)$", "*", rest)
    return TinyslebError(
        f"{path} is one part of a file that was cut to be uploaded",
        f"join them: cat {whole}{pattern} > {whole}",
    )
