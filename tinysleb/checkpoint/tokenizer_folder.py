"""The tokenizer files of a Hugging Face folder, and the settings beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.settings import LARGEST_SIZE, SettingsReader
from tinysleb.formats.files import read_json_object

CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
MODEL_NAMES = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class AddedToken:
    """A token of `added_tokens_decoder`; `special` is None where the file does not say."""

    text: str
    special: bool | None


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder with tokenizer files, and what `tokenizer_config.json` and `added_tokens.json` say.

    `add_prefix_space` is None where the file does not say. Tokens are added to a SentencePiece model by
    both files: `added` by text, `decoder` by index. `special_tokens`: the texts of those with a role, as chat
    templates name them.
    """

    path: Path
    add_bos: bool
    add_prefix_space: bool | None
    added: Mapping[str, int]
    decoder: Mapping[int, AddedToken]
    special_tokens: Mapping[str, str]

    @property
    def kind(self) -> str:
        """A few words for people: which tokenizer files there are."""
        return ", ".join(name for name in MODEL_NAMES if (self.path / name).is_file()) or "none"


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """The settings of a folder's tokenizer. Raises TinyslebError for a value of the wrong type."""
    values = _settings(path)
    read = SettingsReader(values, str(path / CONFIG_NAME))
    return TokenizerFolder(
        path=path,
        add_bos=read.switch("add_bos_token", default="add_bos_token" not in values),
        add_prefix_space=None if values.get("add_prefix_space") is None else read.switch("add_prefix_space"),
        added=_added(path / ADDED_NAME),
        decoder=dict(_added_token(read, *item) for item in read.mapping("added_tokens_decoder").items()),
        special_tokens=_special_tokens(values),
    )


def _special_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like, whether given as a text or as an object; what is neither is not one."""
    named = {key: value for key, value in values.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _settings(path: Path) -> dict[str, Any]:
    return read_json_object(path / CONFIG_NAME) if (path / CONFIG_NAME).is_file() else {}


def _added(path: Path) -> dict[str, int]:
    values = read_json_object(path) if path.is_file() else {}
    read = SettingsReader(values, str(path))
    return {text: read.integer(text, least=0) for text in values}


def _added_token(read: SettingsReader, index: str, item: Any) -> tuple[int, AddedToken]:
    number = int(index) if index.isdecimal() and len(index) < 11 else LARGEST_SIZE + 1
    if not isinstance(item, dict) or number > LARGEST_SIZE:
        raise read.not_modelled("added_tokens_decoder", {index: item}, "an index with a token's content")
    token = SettingsReader(item, read.where, f"added_tokens_decoder: {index}: ")
    special = token.switch("special") if item.get("special") is not None else None
    return number, AddedToken(token.text("content"), special)
