"""GGUF → Hugging Face folder: config, weights and tokenizer, as far as the metadata allow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.checkpoint.gguf_vocabulary import GgufVocabulary
from tinysleb.checkpoint.settings import SettingsReader
from tinysleb.checkpoint.weights import Retyped, TensorInfo
from tinysleb.errors import TinyslebError
from tinysleb.export.config_json import config_json
from tinysleb.export.front_matter import CARD_NAME
from tinysleb.export.huggingface import json_text, write_json_file, write_shards
from tinysleb.export.job import Job, Written
from tinysleb.export.model_card import card_from_metadata
from tinysleb.formats.files import replaced_folder
from tinysleb.formats.tensor_types import tensor_type
from tinysleb.text.sentencepiece_model import CONTROL, UNKNOWN, USER_DEFINED
from tinysleb.text.tokenizer import (
    ByteLevelTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    import_tokenizers,
    tokenizer_from_gguf,
)

SPECIAL_KEY = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")
SPECIAL_IDS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unknown": "unk_token_id",
    "padding": "pad_token_id",
}


@dataclass(frozen=True)
class PlannedFolder:
    """All of a folder but its weights: the tokenizer, what is said of it, and other files as texts."""

    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    vocabulary: GgufVocabulary
    texts: dict[str, str]


def write_job(job: Job[GgufWeights]) -> Written:
    """As `tinysleb.export.writers.write`."""
    planned, dequantized = _plan(job), Retyped(job.model, _dequantized)
    with replaced_folder(job.out) as temporary:
        _write_tokenizer(planned.tokenizer, planned.tokenizer_config, planned.vocabulary, temporary)
        for name, text in planned.texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_shards(dequantized, temporary, job.shard_bytes)
    return Written()


def check_job(job: Job[GgufWeights]) -> None:
    """As `tinysleb.export.writers.check_writable`."""
    _plan(job)


def _plan(job: Job[GgufWeights]) -> PlannedFolder:
    """Raises TinyslebError if the model or its tokenizer cannot be expressed in a folder."""
    weights, values = job.model, job.source.file.values()
    vocabulary = job.source.tokenizer_files()
    tokenizer = tokenizer_from_gguf(vocabulary)
    special = _special_tokens(values, vocabulary)
    ids = {ours: special.get(theirs) for theirs, ours in SPECIAL_IDS.items()}
    stored = [info for info in Retyped(weights, _dequantized).tensors.values() if len(info.shape) > 1]
    dtype = tensor_type(max(stored, key=lambda info: info.nbytes).type).torch
    texts = {
        "config.json": json_text(config_json(weights.config, weights.path) | ids | {"torch_dtype": dtype}),
        "generation_config.json": json_text(_generation_config(special)),
    }
    if job.plan:
        texts["plan.json"] = json_text(job.plan)
    if card := card_from_metadata(values, job.plan):
        texts[CARD_NAME] = card
    return PlannedFolder(tokenizer, _tokenizer_config(values, vocabulary, special), vocabulary, texts)


def _dequantized(_name: str, info: TensorInfo) -> TensorInfo:
    """What a tensor is in a safetensors file: half precision stays, float32 holds all others exactly."""
    stored = tensor_type(info.type)
    stored = stored if stored.is_half else tensor_type("F32")
    return TensorInfo(info.shape, stored.name, math.prod(info.shape) * stored.item_bytes)


def _generation_config(special: Mapping[str, int]) -> dict[str, Any]:
    """Where a text begins and ends; a chat's turns may end otherwise than a text."""
    found = list(dict.fromkeys(special[name] for name in ("eos", "eot", "eom") if name in special))
    named = {"bos_token_id": special.get("bos"), "eos_token_id": found if len(found) != 1 else found[0]}
    return {key: value for key, value in named.items() if value not in (None, [])}


def _special_tokens(values: Mapping[str, Any], vocabulary: GgufVocabulary) -> dict[str, int]:
    """The indices of special tokens by their names, such as `eos`."""
    read = SettingsReader(values, vocabulary.where)
    named = {match[1]: key for key in values if (match := SPECIAL_KEY.fullmatch(key))}
    found = {name: read.token(key, len(vocabulary.tokens)) for name, key in named.items()}
    return {name: index for name, index in found.items() if index is not None}


def _write_tokenizer(
    tokenizer: Tokenizer, config: dict[str, Any], vocabulary: GgufVocabulary, folder: Path
) -> None:
    if isinstance(tokenizer, SentencePieceTokenizer):
        (folder / "tokenizer.model").write_bytes(tokenizer.processor.serialized_model_proto())
        config["tokenizer_class"] = "LlamaTokenizer"
        config["legacy"] = True
        if not vocabulary.add_space_prefix:
            config["add_prefix_space"] = False
    elif isinstance(tokenizer, ByteLevelTokenizer):
        if tokenizer.bos is not None:
            _put_in_front(tokenizer, vocabulary.tokens[tokenizer.bos])
        tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        raise TinyslebError(f"{vocabulary.where}: its tokenizer cannot be written to a folder")
    write_json_file(folder / "tokenizer_config.json", config)


def _put_in_front(tokenizer: ByteLevelTokenizer, bos: str) -> None:
    """The BOS token, by a step of the tokenizer's own."""
    processors = import_tokenizers("the GGUF's tokenizer").processors
    tokenizer.tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos)]
    )


def _tokenizer_config(
    values: Mapping[str, Any], vocabulary: GgufVocabulary, special: Mapping[str, int]
) -> dict[str, Any]:
    tokens = vocabulary.tokens
    config: dict[str, Any] = {
        ours.removesuffix("_id"): tokens[special[theirs]]
        for theirs, ours in SPECIAL_IDS.items()
        if theirs in special
    }
    config["clean_up_tokenization_spaces"] = False
    config["added_tokens_decoder"] = {
        str(index): {"content": tokens[index], "special": type_ != USER_DEFINED, "normalized": False}
        for index, type_ in enumerate(vocabulary.types)
        if type_ in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    read = SettingsReader(values, vocabulary.where)
    for key in ("add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{key}" in values:
            config[key] = read.switch(f"tokenizer.ggml.{key}")
    if templates := _chat_templates(read):
        config["chat_template"] = templates
    return config


def _chat_templates(read: SettingsReader) -> str | list[dict[str, str]]:
    """The one template, or all of them by name where there are more; empty if there is none."""
    key = "tokenizer.chat_template"
    names = {"default": key, **{name: f"{key}.{name}" for name in read.texts("tokenizer.chat_templates")}}
    texts = {name: read.text(key, default="") for name, key in names.items()}
    found = {name: text for name, text in texts.items() if text}
    if set(found) <= {"default"}:
        return found.get("default", "")
    return [{"name": name, "template": text} for name, text in found.items()]
