"""The tokenizer files of a Hugging Face folder, and the settings beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.settings import LARGEST_SIZE, SettingsReader
from tinysleb.formats.files import read_json_object

CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
SPECIAL_NAME = "special_tokens_map.json"
SENTENCEPIECE_NAME, JSON_NAME = "tokenizer.model", "tokenizer.json"
VOCABULARY_NAME, MERGES_NAME = "vocab.json", "merges.txt"
MODEL_NAMES = (SENTENCEPIECE_NAME, JSON_NAME, VOCABULARY_NAME, MERGES_NAME)
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


@dataclass(frozen=True)
class AddedToken:
    """A token of `added_tokens_decoder`, or one with a role; `special` is None where the file does not say.

    The other fields are those of the `tokenizers` package: whether whitespace beside the token belongs to it,
    whether it must be a word, and whether it is looked for in text that was normalised (None: if it is not
    special).
    """

    text: str
    special: bool | None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder with tokenizer files, and what `tokenizer_config.json` and `added_tokens.json` say.

    `add_bos` and `add_prefix_space` are None where the file does not say. Tokens are added to a SentencePiece
    model by both files: `added` by text, `decoder` by index. `special_tokens`: the texts of those with a
    role, as chat templates name them. `named` has them as they are to be added to a vocabulary, and `extra`
    more of them without a role; a role that has no token is None. `family`: the name of transformers' class
    for the tokenizer, without the ending Fast; `model_type` that of the model.
    """

    path: Path
    add_bos: bool | None
    add_eos: bool
    add_prefix_space: bool | None
    added: Mapping[str, int]
    decoder: Mapping[int, AddedToken]
    special_tokens: Mapping[str, str]
    named: Mapping[str, AddedToken | None]
    extra: tuple[AddedToken, ...]
    family: str
    model_type: str

    @property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model, if there is one: Meta's `tokenizer.model` of Llama 3 is none."""
        path = self.path / SENTENCEPIECE_NAME
        return path if path.is_file() and not is_tiktoken(path) else None

    @property
    def kind(self) -> str:
        """A few words for people: which tokenizer files there are."""
        return ", ".join(name for name in MODEL_NAMES if (self.path / name).is_file()) or "none"


def is_tiktoken(path: Path) -> bool:
    """Whether a file is a vocabulary of tiktoken: a line for each token, in base64, and its rank."""
    with path.open("rb") as file:
        return TIKTOKEN_LINE.match(file.read(1024)) is not None


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """The settings of a folder's tokenizer. Raises TinyslebError for a value of the wrong type."""
    values, config = _json(path / CONFIG_NAME), _json(path / "config.json")
    read = SettingsReader(values, str(path / CONFIG_NAME))
    roles = values if "added_tokens_decoder" in values else values | _json(path / SPECIAL_NAME)
    class_name = values.get("tokenizer_class") or config.get("tokenizer_class")
    extra = roles.get("extra_special_tokens") or roles.get("additional_special_tokens") or []
    return TokenizerFolder(
        path=path,
        add_bos=read.switch("add_bos_token") if "add_bos_token" in values else None,
        add_eos=read.switch("add_eos_token"),
        add_prefix_space=None if values.get("add_prefix_space") is None else read.switch("add_prefix_space"),
        added=_added(path / ADDED_NAME),
        decoder=dict(_added_token(read, *item) for item in read.mapping("added_tokens_decoder").items()),
        special_tokens=_special_tokens(values),
        named={role: _with_role(token) for role, token in roles.items() if _is_role(role)},
        extra=tuple(filter(None, map(_with_role, extra))) if isinstance(extra, list) else (),
        family=str(class_name or "").removesuffix("Fast"),
        model_type=str(config.get("model_type") or ""),
    )


def _is_role(key: str) -> bool:
    return key.endswith("_token") and not key.startswith("add_")


def _with_role(token: object) -> AddedToken | None:
    """A token with a role, given as a text or as an object; None for what is neither."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        return None
    return AddedToken(token["content"], special=True, **_matching(token))


def _matching(token: Mapping[str, Any]) -> dict[str, bool]:
    """How a token is to be found in a text, as far as an object says it."""
    keys = ("lstrip", "rstrip", "single_word", "normalized")
    return {key: token[key] for key in keys if isinstance(token.get(key), bool)}


def _special_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like, whether given as a text or as an object; what is neither is not one."""
    named = {key: _with_role(value) for key, value in values.items() if key.endswith("_token")}
    return {key: token.text for key, token in named.items() if token is not None}


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _added(path: Path) -> dict[str, int]:
    values = _json(path)
    read = SettingsReader(values, str(path))
    return {text: read.integer(text, least=0) for text in values}


def _added_token(read: SettingsReader, index: str, item: Any) -> tuple[int, AddedToken]:
    number = int(index) if index.isdecimal() and len(index) < 11 else LARGEST_SIZE + 1
    if not isinstance(item, dict) or number > LARGEST_SIZE:
        raise read.not_modelled("added_tokens_decoder", {index: item}, "an index with a token's content")
    token = SettingsReader(item, read.where, f"added_tokens_decoder: {index}: ")
    special = token.switch("special") if item.get("special") is not None else None
    return number, AddedToken(token.text("content"), special, **_matching(item))
