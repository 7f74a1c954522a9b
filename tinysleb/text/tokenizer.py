"""Text to tokens, by the tokenizer that comes with a model: SentencePiece, or byte-level BPE.

Both are somebody else's libraries behind one `encode`. Byte-level BPE needs the optional package
`tokenizers`; without it, everything that needs no text still works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sentencepiece import SentencePieceProcessor

from tinysleb.checkpoint.weights import Checkpoint, TokenizerFolder, TokenizerMetadata
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.formats.files import read_json_object
from tinysleb.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from tinysleb.text.sentencepiece_model import (
    BPE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    model_kind,
    model_pieces,
    sentencepiece_bpe_model,
)

if TYPE_CHECKING:
    import tokenizers

TOKENS_HINT = "or give token windows with --tokens FILE.npy"


class Tokenizer(Protocol):
    """What calibration needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the BOS token in front where the model wants one."""


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model; `bos` is put in front unless it is None.

    `specials` are tokens taken whole where their text occurs; what lies between them is encoded piece by
    piece, each with the model's own space in front. So does llama.cpp; Hugging Face differs from both where
    the text after a special token begins with a space, and adds no second one.
    """

    processor: SentencePieceProcessor
    bos: int | None
    specials: Mapping[str, int] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        tokens = [] if self.bos is None else [self.bos]
        longest_first = sorted(filter(None, self.specials), key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        for part in re.split(f"({pattern})", text) if pattern else [text]:
            if part in self.specials:
                tokens.append(self.specials[part])
            elif part:
                tokens += self.processor.encode(part)
        return tokens


@dataclass(frozen=True)
class ByteLevelTokenizer:
    """A tokenizer of the `tokenizers` package; `bos` None leaves special tokens to the package."""

    tokenizer: tokenizers.Tokenizer
    bos: int | None = None

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        prefix = [] if self.bos is None else [self.bos]
        return prefix + list(self.tokenizer.encode(text).ids)


def open_tokenizer(model: Checkpoint) -> Tokenizer:
    """The tokenizer beside a checkpoint's weights, or the one in a GGUF's metadata.

    Raises TinyslebError if there is none, or if it needs a package that is not installed.
    """
    files = model.tokenizer_files()
    if isinstance(files, TokenizerMetadata):
        return tokenizer_from_gguf(files.values, files.where)
    if isinstance(files, TokenizerFolder):
        return _from_folder(files.folder)
    raise TypeError(f"no tokenizer is known for {type(files).__name__}")


def tokenizer_kind(model: Checkpoint) -> str:
    """A few words for people: which tokenizer a model has. Reads names only."""
    files = model.tokenizer_files()
    if isinstance(files, TokenizerMetadata):
        kind, pre = (files.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        return " ".join(str(part) for part in (kind, pre) if part) or "none"
    names = [name for name in ("tokenizer.model", "tokenizer.json") if (files.folder / name).is_file()]
    return ", ".join(names) or "none"


def import_tokenizers(what: str) -> Any:
    """The `tokenizers` package. Raises TinyslebError with the install line if it is absent."""
    try:
        import tokenizers
    except ImportError as error:
        raise TinyslebError(
            f"{what} is a byte-level BPE tokenizer, which needs the package `tokenizers`",
            f"run {pip_install('tokenizers')}, {TOKENS_HINT}",
        ) from error
    return tokenizers


def load_sentencepiece(path: Path) -> SentencePieceProcessor:
    """A `tokenizer.model` file. Raises TinyslebError if it is not one."""
    try:
        return SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise TinyslebError(f"{path} is not a SentencePiece model: {error}") from error


def _from_folder(folder: Path) -> Tokenizer:
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path) if config_path.is_file() else {}
    if (folder / "tokenizer.model").is_file():
        processor = load_sentencepiece(folder / "tokenizer.model")
        if config.get("add_prefix_space") is False:
            processor = _without_prefix(processor, folder / "tokenizer.model")
        bos = processor.bos_id() if config.get("add_bos_token", True) else None
        return SentencePieceTokenizer(processor, bos, _specials(processor) | added_tokens(folder, config))
    path = folder / "tokenizer.json"
    if path.is_file():
        package = import_tokenizers(str(path))
        try:
            return ByteLevelTokenizer(package.Tokenizer.from_file(str(path)))
        except Exception as error:  # the package raises plain Exception
            raise TinyslebError(f"{path} is not a tokenizer file: {error}") from error
    raise TinyslebError(
        f"there is no tokenizer.model and no tokenizer.json in {folder}",
        f"put the model's tokenizer files there, {TOKENS_HINT}",
    )


def added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Tokens a checkpoint adds to its SentencePiece model (`added_tokens.json`, `tokenizer_config.json`)."""
    path = folder / "added_tokens.json"
    found: dict[str, int] = dict(read_json_object(path)) if path.is_file() else {}
    decoder = config.get("added_tokens_decoder") or {}
    return found | {item["content"]: int(index) for index, item in decoder.items()}


def _without_prefix(processor: SentencePieceProcessor, path: Path) -> SentencePieceProcessor:
    """The same vocabulary, but no space is put before a text."""
    if model_kind(processor.serialized_model_proto()) != BPE:
        raise TinyslebError(f"{path} is not a BPE model, so that `add_prefix_space` cannot be false")
    pieces, scores, types = zip(*model_pieces(processor), strict=True)
    return SentencePieceProcessor(
        model_proto=sentencepiece_bpe_model(pieces, scores, types, dummy_prefix=False)
    )


def _specials(processor: SentencePieceProcessor) -> dict[str, int]:
    pieces = enumerate(model_pieces(processor))
    return {text: index for index, (text, _, kind) in pieces if kind in (UNKNOWN, CONTROL)}


def tokenizer_from_gguf(values: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer in a GGUF's metadata (key → value); `where` names the file in errors."""
    kind = values.get("tokenizer.ggml.model")
    tokens = values.get("tokenizer.ggml.tokens")
    if not tokens or not isinstance(tokens, list):
        raise TinyslebError(f"{where} holds no tokenizer", f"take a complete GGUF, {TOKENS_HINT}")
    types = values.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise TinyslebError(f"{where}: {len(tokens)} tokens but {len(types)} token types")
    if kind == "llama":
        return _sentencepiece_from_gguf(values, tokens, types, where)
    if kind == "gpt2":
        return _byte_level_from_gguf(values, tokens, types, where)
    raise TinyslebError(
        f"{where}: `tokenizer.ggml.model` is {kind!r}; supported are 'llama' and 'gpt2'",
        f"take another file of the model, {TOKENS_HINT}",
    )


def _sentencepiece_from_gguf(
    values: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> Tokenizer:
    scores = values.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise TinyslebError(f"{where}: {len(tokens)} tokens but {len(scores)} token scores")
    dummy_prefix = values.get("tokenizer.ggml.add_space_prefix", True)
    unknown = values.get("tokenizer.ggml.unknown_token_id", types.index(UNKNOWN) if UNKNOWN in types else 0)
    pieces = [CONTROL if type_ == UNKNOWN else type_ for type_ in types]
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise TinyslebError(
            f"{where}: `tokenizer.ggml.unknown_token_id` is {unknown!r} of {len(tokens)} tokens"
        )
    pieces[unknown] = UNKNOWN  # the library wants exactly one
    proto = sentencepiece_bpe_model(tokens, scores, pieces, dummy_prefix=dummy_prefix)
    try:
        processor = SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise TinyslebError(f"{where}: its vocabulary is not a SentencePiece model: {error}") from error
    kinds = (UNKNOWN, CONTROL, USER_DEFINED)
    specials = {token: index for index, token in enumerate(tokens) if types[index] in kinds}
    return SentencePieceTokenizer(processor, _bos(values, default=True), specials)


def _byte_level_from_gguf(
    values: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> Tokenizer:
    package = import_tokenizers(where)
    pre = values.get("tokenizer.ggml.pre")
    rules = PRE_TOKENIZERS.get(str(pre))
    if rules is None:
        raise TinyslebError(
            f"{where}: `tokenizer.ggml.pre` is {pre!r}, a way of splitting text that is not known here",
            f"known: {', '.join(PRE_TOKENIZERS)}; {TOKENS_HINT}",
        )
    merges = [tuple(pair.split(" ", 1)) for pair in values.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        bpe = package.models.BPE(vocabulary, merges, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the package raises plain Exception
        raise TinyslebError(f"{where}: its vocabulary and merges do not match: {error}") from error
    tokenizer = package.Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(package, rules)
    tokenizer.decoder = package.decoders.ByteLevel()
    if rules.normal_form:
        tokenizer.normalizer = getattr(package.normalizers, rules.normal_form)()
    for kind, add in ((CONTROL, "add_special_tokens"), (USER_DEFINED, "add_tokens")):
        named = [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]
        getattr(tokenizer, add)([package.AddedToken(t, normalized=False) for t in named])
    return ByteLevelTokenizer(tokenizer, _bos(values, default=rules.add_bos))


def _pre_tokenizer(package: Any, rules: PreTokenizer) -> Any:
    steps = package.pre_tokenizers
    splits = [steps.Split(package.Regex(pattern), "isolated") for pattern in rules.patterns]
    return steps.Sequence([*splits, steps.ByteLevel(add_prefix_space=False, use_regex=False)])


def _bos(values: Mapping[str, Any], default: bool) -> int | None:
    if not values.get("tokenizer.ggml.add_bos_token", default):
        return None
    bos: int | None = values.get("tokenizer.ggml.bos_token_id")
    return bos
