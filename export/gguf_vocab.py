"""The tokenizer of a checkpoint as GGUF metadata (`tokenizer.*`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf.constants import TokenType
from gguf.gguf_writer import GGUFWriter

from tinysleb.checkpoint.tokenizer_folder import TokenizerFolder, read_tokenizer_folder
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_json_object
from tinysleb.text.pre_tokenizers import PRE_TOKENIZERS
from tinysleb.text.sentencepiece_model import BPE, model_kind, model_pieces
from tinysleb.text.tokenizer import load_sentencepiece, load_tokenizer_json, load_vocabulary_and_merges
from tinysleb.text.vocab_and_merges import family_of, has_vocabulary_and_merges

UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0
MOST_LISTED = 4
CODE_VOCABULARY = 49152
"""Vocabularies of this size (SmolLM, Granite) take no BOS token, whatever their config says."""

PROBE_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ "
    "🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? "
    "We'Ve a'lL"
)
"""What llama.cpp's converter encodes to recognise a pre-tokenizer (`get_vocab_base_pre`)."""
FINGERPRINTS = {
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",  # Qwen/Qwen3-Embedding-0.6B
    "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4": "gpt-2",  # evilfreelancer/ruGPT3XL
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",  # meta-llama/Meta-Llama-3-8B
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",  # bigcode/starcoder2-3b
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",  # openai-community/gpt2
    "6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff": "refact",  # smallcloudai/Refact-1_6-base
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",  # Qwen/Qwen1.5-7B
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",  # mistralai/Mistral-Nemo-Base-2407
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",  # HuggingFaceTB/SmolLM-135M
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",  # deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
    "32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3": "stablelm2",  # stabilityai/stablelm-2-zephyr-1_6b
    "a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e": "dbrx",  # databricks/dbrx-base
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",  # abacusai/Smaug-Llama-3-70B-Instruct
    "ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e": "gpt-4o",  # Xenova/gpt-4o
}
"""SHA-256 of the probe's token ids → `tokenizer.ggml.pre`, from the same function of the converter."""


@dataclass(frozen=True)
class Token:
    """One entry of the vocabulary as a GGUF has it."""

    text: str
    type: TokenType
    score: float = 0.0


class SpecialTokens(gguf.SpecialVocab):
    """The package's, which ends with an error for a negative id, takes `true` for 1, and writes a warning."""

    def __init__(self, folder: Path, merges: bool, rows: int) -> None:
        self.notes: list[str] = []
        super().__init__(folder, load_merges=merges, n_vocab=rows)

    def _set_special_token(self, typ: str, tid: Any) -> None:
        if type(tid) is int and not 0 <= tid < (self.n_vocab or 0):
            none = f"{tid} is none of the {self.n_vocab} tokens"
            self.notes.append(f"note: the id of the {typ} token is left out: {none}")
        elif type(tid) is int:
            super()._set_special_token(typ, tid)


def add_vocabulary(writer: GGUFWriter, folder: Path, rows: int, pre: str | None) -> tuple[str, ...]:
    """Add the tokenizer found in `folder`; `rows` is the embedding's number of rows.

    Returns notes about what was left out. `pre` names the pre-tokenizer of a byte-level BPE; None: it is
    recognised.

    Raises TinyslebError if there is none, if it has more tokens than rows, or if its way of splitting
    text is unknown to llama.cpp.
    """
    settings = read_tokenizer_folder(folder)
    if settings.add_prefix_space is not None:
        writer.add_add_space_prefix(settings.add_prefix_space)
    byte_level = False
    path = folder / "tokenizer.json"
    if settings.sentencepiece is not None:
        path = settings.sentencepiece
        found = _sentencepiece_tokens(settings)
    elif path.is_file() or has_vocabulary_and_merges(settings):
        values = _tokenizer_json(settings, path)
        try:
            byte_level = not (values.get("model") or {}).get("byte_fallback")
            found = _json_tokens(values, path, rows)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TinyslebError(f"{path} is not a valid BPE tokenizer ({error!r})") from error
    else:
        raise TinyslebError(
            f"there is no tokenizer.model and no tokenizer.json in {folder}",
            "a GGUF carries its tokenizer: put the model's tokenizer files there",
        )
    tokens = _filled(found, rows)
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    if pre is None and has_vocabulary_and_merges(settings):
        pre = family_of(settings).pre
    known = _pre_tokenizer(path, pre) if byte_level else "default"
    writer.add_tokenizer_pre(known)
    writer.add_token_list([token.text for token in tokens])
    if not byte_level:
        writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    return (*_left_out(found, rows, path), *_add_special_tokens(writer, folder, rows, byte_level))


def _tokenizer_json(settings: TokenizerFolder, path: Path) -> dict[str, Any]:
    """What `tokenizer.json` says, or would say of a `vocab.json` with its `merges.txt`."""
    if path.is_file():
        return read_json_object(path)
    values: dict[str, Any] = json.loads(load_vocabulary_and_merges(settings).to_str())
    return values


def _add_special_tokens(writer: GGUFWriter, folder: Path, rows: int, merges: bool) -> list[str]:
    try:
        special = SpecialTokens(folder, merges, rows)
        if rows == CODE_VOCABULARY:
            special.add_special_token["bos"] = False
        special.add_to_gguf(writer, quiet=True)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # the package trusts these files
        raise TinyslebError(
            f"{folder}: its special tokens, merges or chat template are of a wrong type ({error!r})"
        ) from error
    return special.notes


def _pre_tokenizer(path: Path, pre: str | None) -> str:
    """The name that the user gives, or the one recognised."""
    if pre is not None and pre not in PRE_TOKENIZERS:
        raise TinyslebError(f"the pre-tokenizer {pre!r} is not known", f"known: {', '.join(PRE_TOKENIZERS)}")
    return pre or pre_tokenizer_name(path)


def pre_tokenizer_name(path: Path) -> str:
    """llama.cpp's name for how a `tokenizer.json` splits text, by what it makes of the probe text.

    Raises TinyslebError if the fingerprint is not in the table: a wrong name would go unnoticed.
    """
    tokenizer = load_tokenizer_json(path)
    fingerprint = hashlib.sha256(str(tokenizer.encode(PROBE_TEXT)).encode()).hexdigest()
    if fingerprint not in FINGERPRINTS:
        raise TinyslebError(
            f"{path} splits text in a way that is not known here (fingerprint {fingerprint})",
            "if you know llama.cpp's name for it, give it with --pre; recognised: "
            + ", ".join(sorted(set(FINGERPRINTS.values()))),
        )
    return FINGERPRINTS[fingerprint]


def _json_tokens(values: Mapping[str, Any], path: Path, rows: int) -> dict[int, Token]:
    """The vocabulary of a `tokenizer.json` of BPE kind, byte-level or (Llama 2's) with byte fallback.

    llama.cpp merges the latter by score, so a piece gets the place of its merge, as SentencePiece does it.
    Raises TinyslebError if there are more tokens than `rows`, besides those that were added.
    """
    model = values.get("model") or {}
    if model.get("type") != "BPE":
        raise TinyslebError(
            f"{path} is not a BPE tokenizer (type {model.get('type')!r})",
            "put the model's tokenizer.model beside it",
        )
    merges = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges") or [])
    scores = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
    lowest = -float(len(scores))
    found = {
        index: Token(text, _piece_type(text, model), scores.get(text, lowest))
        for text, index in model["vocab"].items()
    }
    added = values.get("added_tokens") or []
    beyond = {token.text for index, token in found.items() if index >= rows}
    if beyond - {item["content"] for item in added}:
        raise TinyslebError(
            f"{path} has a token with index {max(found)}, the embedding only {rows} rows",
            "the tokenizer belongs to another model",
        )
    for item in added:
        type_ = _added_type(item["content"], item["special"])
        if item["content"] == model.get("unk_token"):
            type_ = TokenType.UNKNOWN
        index = model["vocab"].get(item["content"], item["id"])  # which one of the vocabulary keeps
        found[index] = Token(item["content"], type_, ADDED_SCORE)
    return found


def _piece_type(text: str, model: Mapping[str, Any]) -> TokenType:
    is_byte = model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _sentencepiece_tokens(settings: TokenizerFolder) -> dict[int, Token]:
    path = settings.path / "tokenizer.model"
    processor = load_sentencepiece(path)
    if model_kind(processor.serialized_model_proto()) != BPE:
        raise TinyslebError(
            f"{path} is a SentencePiece model of another kind than BPE, which a GGUF of this family "
            "cannot express"
        )
    found = {
        index: Token(text, TokenType(kind), score)
        for index, (text, score, kind) in enumerate(model_pieces(processor))
    }
    places = {token.text: index for index, token in found.items()}
    added = dict(_added_tokens(settings))
    return found | {i: token for i, token in added.items() if places.get(token.text, i) == i}


def _added_tokens(settings: TokenizerFolder) -> Iterator[tuple[int, Token]]:
    for text, index in settings.added.items():
        yield index, Token(text, TokenType.USER_DEFINED, ADDED_SCORE)
    for index, token in settings.decoder.items():
        type_ = _added_type(token.text, token.special)
        text = token.text.replace("▁", " ") if type_ == TokenType.USER_DEFINED else token.text
        yield index, Token(text, type_, ADDED_SCORE)


def _added_type(text: str, special: bool | None) -> TokenType:
    looks_special = text.startswith("<|") and text.endswith("|>")
    return TokenType.CONTROL if special or looks_special else TokenType.USER_DEFINED


def _filled(found: Mapping[int, Token], rows: int) -> list[Token]:
    """All `rows` tokens; rows without one are named and marked as unused."""
    return [found.get(index, Token(f"[PAD{index}]", TokenType.UNUSED, UNUSED_SCORE)) for index in range(rows)]


def _left_out(found: Mapping[int, Token], rows: int, path: Path) -> list[str]:
    """A note about tokens that the embedding has no row for: the converter passes over them, too."""
    beyond = [found[index].text for index in sorted(found) if index >= rows]
    if not beyond:
        return []
    listed = ", ".join(map(shown, beyond[:MOST_LISTED])) + (", …" if len(beyond) > MOST_LISTED else "")
    return [f"note: {path}: the embedding has {rows} rows; the tokens beyond are left out: {listed}"]
