"""`general.*` of a GGUF made from a checkpoint: what the model card, the config and how to generate say.

The rules are the gguf package's (`gguf.Metadata`). It is given values of the types that a GGUF has for them:
by itself it reads the files in one encoding, and writes what it finds, of whatever type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from tinysleb.errors import TinyslebError, shown
from tinysleb.export.front_matter import CARD_NAME, card_values, read_card
from tinysleb.formats.files import read_json_object

GENERATION_NAME = "generation_config.json"
SAMPLING: Mapping[str, tuple[str, type]] = {
    "sequence": ("sampling_sequence", str),
    "top_k": ("sampling_top_k", int),
    "top_p": ("sampling_top_p", float),
    "min_p": ("sampling_min_p", float),
    "xtc_probability": ("sampling_xtc_probability", float),
    "xtc_threshold": ("sampling_xtc_threshold", float),
    "temperature": ("sampling_temp", float),
    "penalty_last_n": ("sampling_penalty_last_n", int),
    "penalty_repeat": ("sampling_penalty_repeat", float),
    "mirostat": ("sampling_mirostat", int),
    "mirostat_tau": ("sampling_mirostat_tau", float),
    "mirostat_eta": ("sampling_mirostat_eta", float),
}
"""Keys of `generation_config.json`: the package's name for each, and its type in a GGUF."""
LISTS = frozenset({"tags", "pipeline_tag", "languages", "language", "license"})
ORIGINS = frozenset(
    """
    base_model base_models base_model_sources datasets dataset dataset_sources
    """.split()  # noqa: SIM905
)
TEXTS = frozenset(
    """
    name author version organization description finetune basename size_label url doi uuid repo_url model_name
    model_author model_version model_organization model_description model_finetune model_basename
    model_size_label model_url model_doi model_uuid model_repo_url model_creator model_type license_name
    license_link
    """.split()  # noqa: SIM905
)
"""Fields of a card: those that are a text, a text or several, and other models and texts by their names."""
LARGEST_INT32 = 2**31 - 1
LARGEST_FLOAT32 = 3.4028234e38


def general_metadata(
    folder: Path, config: Mapping[str, Any], parameters: int
) -> tuple[gguf.Metadata, tuple[str, ...]]:
    """What the files in `folder` say of a model, `config` being its `config.json`; and notes about what they
    say that a GGUF cannot have.
    """
    card, card_notes = _usable(folder / CARD_NAME)
    name = config.get("_name_or_path")
    named = {"_name_or_path": name} if isinstance(name, str) else {}
    try:
        metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, named, folder, parameters)
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # the package trusts its input
        raise TinyslebError(
            f"{folder}: no name can be made of its model card (README.md) or config.json: {error}",
            "repair or delete the card",
        ) from error
    if metadata.name is None:
        metadata.name = folder.resolve().name
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(parameters, parameters, 0, 0)
    sampling, sampling_notes = _sampling(folder / GENERATION_NAME)
    for key, value in sampling.items():
        setattr(metadata, SAMPLING[key][0], value)
    return metadata, (*card_notes, *sampling_notes)


def _usable(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The fields of a card that have the form which they should have."""
    try:
        values = card_values(read_card(path)) if path.is_file() else {}
    except ValueError as error:
        return {}, [f"note: {path}: its front matter is not used: {str(error).splitlines()[0]}"]
    usable: dict[str, Any] = {}
    notes = []
    for key in TEXTS | LISTS | ORIGINS:
        if key not in values:
            continue
        value = values[key]
        if isinstance(value, list) and key not in TEXTS:
            kept = [item for item in value if _is_entry(item, key)]
            if len(kept) < len(value):
                notes.append(f"note: {path}: of `{key}`, only texts are used, not {shown(value)}")
            usable[key] = kept
        elif isinstance(value, str):
            usable[key] = value
        else:
            notes.append(f"note: {path}: `{key}` is not used: it should be a text, not {shown(value)}")
    return usable, sorted(notes)


def _is_entry(item: Any, key: str) -> bool:
    described = isinstance(item, dict) and all(isinstance(value, str) for value in item.values())
    return isinstance(item, str) or (key in ORIGINS and described)


def _sampling(path: Path) -> tuple[dict[str, Any], list[str]]:
    """How to generate, and notes about what is not what it should be."""
    if not path.is_file():
        return {}, []
    try:
        values = read_json_object(path)
    except TinyslebError as error:  # transformers goes on without it, too
        return {}, [f"note: {error.message}; it is not used"]
    found = {}
    notes = []
    for key, (_, type_) in SAMPLING.items():
        value = values.get(key)
        if value is None:
            continue
        number = value if type_ is str and isinstance(value, str) else _number(value, type_)
        if number is None:
            notes.append(f"note: {path}: `{key}` is not used: it is {shown(value)}")
            continue
        if isinstance(value, str) and type_ is not str:
            notes.append(f"note: {path}: `{key}` is {shown(value)}, a text; taken as {number}")
        found[key] = number
    return found, notes


def _number(value: Any, type_: type) -> int | float | None:
    """A value as a number of a GGUF, also if it is written as a text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if type_ is int:
        return int(number) if number.is_integer() and abs(number) <= LARGEST_INT32 else None
    return number if math.isfinite(number) and abs(number) <= LARGEST_FLOAT32 else None
