"""Text to tokens, by the tokenizer that comes with a model: SentencePiece, or byte-level BPE.

Both are somebody else's libraries behind one `encode`. Byte-level BPE needs the optional package
`tokenizers`; without it, everything that needs no text still works.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sentencepiece import SentencePieceProcessor

from tinysleb.checkpoint.gguf_vocabulary import BYTE_LEVEL, PRE_KEY, PREFIX, GgufVocabulary
from tinysleb.checkpoint.tokenizer_folder import (
    JSON_NAME,
    MERGES_NAME,
    SENTENCEPIECE_NAME,
    VOCABULARY_NAME,
    AddedToken,
    TokenizerFolder,
)
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.errors import TinyslebError, pip_install, shown
from tinysleb.formats.wrong_file import wrong_file
from tinysleb.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from tinysleb.text.sentencepiece_model import (
    BPE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    model_kind,
    model_pieces,
    sentencepiece_bpe_model,
)
from tinysleb.text.tokenizer_process import TokenizerProcess
from tinysleb.text.vocab_and_merges import (
    around,
    family_of,
    has_vocabulary_and_merges,
    read_vocabulary,
    tokens_to_add,
)

if TYPE_CHECKING:
    import tokenizers

TOKENS_HINT = "or give token windows with --tokens FILE.npy"
DEFAULT_BOS = {"llama": 1, BYTE_LEVEL: 11}
"""By the kind of a GGUF's vocabulary (`llama_vocab::impl::load` in `src/llama-vocab.cpp`)."""


class Tokenizer(Protocol):
    """What calibration needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the BOS token in front where the model wants one."""


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model; `bos` is put in front and `eos` behind unless they are None.

    `specials` are tokens taken whole where their text occurs; what lies between them is encoded piece by
    piece, each with the model's own space in front. So does llama.cpp; Hugging Face differs from both where
    the text after a special token begins with a space, and adds no second one. Whitespace before those in
    `lstrip`, and behind those in `rstrip`, belongs to them.
    """

    processor: SentencePieceProcessor
    bos: int | None
    specials: Mapping[str, int] = field(default_factory=dict)
    eos: int | None = None
    lstrip: frozenset[str] = frozenset()
    rstrip: frozenset[str] = frozenset()

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        tokens = [] if self.bos is None else [self.bos]
        done = 0
        for begin, end in self._find_specials(text):
            special, before = text[begin:end], text[done:begin]
            tokens += self._encode_plain(before.rstrip() if special in self.lstrip else before)
            tokens.append(self.specials[special])
            done = end
            while special in self.rstrip and text[done : done + 1].isspace():
                done += 1
        return tokens + self._encode_plain(text[done:]) + ([] if self.eos is None else [self.eos])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones and those that have no text."""
        special, size = set(self.specials.values()), self.processor.get_piece_size()
        return str(self.processor.decode([t for t in tokens if t not in special and t < size]))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self.processor.encode(text)) if text else []

    def _find_specials(self, text: str) -> Iterator[tuple[int, int]]:
        """Where special tokens begin and end: at each place the longest that stands there."""
        position = 0
        while self._lengths and (match := self._first_character.search(text, position)):
            begin = match.start()
            ends = (begin + length for length in self._lengths[text[begin]])
            end = next((end for end in ends if text[begin:end] in self.specials), None)
            position = end or begin + 1
            if end is not None:
                yield begin, end

    @cached_property
    def _lengths(self) -> Mapping[str, list[int]]:
        """The lengths of the special tokens that begin with a character, longest first.

        A vocabulary may have a hundred thousand special tokens, too many for one regular expression, but has
        few lengths for each beginning.
        """
        found: dict[str, set[int]] = {}
        for special in filter(None, self.specials):
            found.setdefault(special[0], set()).add(len(special))
        return {first: sorted(lengths, reverse=True) for first, lengths in found.items()}

    @cached_property
    def _first_character(self) -> re.Pattern[str]:
        return re.compile(f"[{''.join(map(re.escape, self._lengths))}]")


@dataclass(frozen=True)
class ByteLevelTokenizer:
    """A tokenizer of the `tokenizers` package; `bos` and `eos` None leave special tokens to the package."""

    tokenizer: tokenizers.Tokenizer
    bos: int | None = None
    eos: int | None = None

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        before, behind = ([] if token is None else [token] for token in (self.bos, self.eos))
        return before + list(self.tokenizer.encode(text).ids) + behind

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones and those that have no text."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


ModelTokenizer = SentencePieceTokenizer | ByteLevelTokenizer | TokenizerProcess


def open_tokenizer(model: Checkpoint) -> ModelTokenizer:
    """The tokenizer beside a checkpoint's weights, or the one in a GGUF's metadata.

    Raises TinyslebError if there is none, or if it needs a package that is not installed.
    """
    source = model.tokenizer_files()
    if isinstance(source, GgufVocabulary):
        return tokenizer_from_gguf(source)
    if isinstance(source, TokenizerFolder):
        return _from_folder(source)
    raise TypeError(f"no tokenizer can be opened from a {type(source).__name__}")


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


@contextmanager
def _package_errors(what: str) -> Iterator[None]:
    """The `tokenizers` package raises plain Exception, and for what it did not expect not even that."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TinyslebError(f"{what}: {shown(str(error))}") from error


def load_tokenizer_json(path: Path) -> TokenizerProcess:
    """A `tokenizer.json` file, to encode a text as it is: without padding, and without an end.

    Raises TinyslebError if it is not one, or the package that reads it is not installed.
    """
    import_tokenizers(str(path))
    try:
        return TokenizerProcess(path)
    except TinyslebError as error:
        raise wrong_file(path) or error from error


def load_sentencepiece(path: Path) -> SentencePieceProcessor:
    """A `tokenizer.model` file. Raises TinyslebError if it is not one."""
    try:
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(path.read_bytes())  # the constructor takes an empty one for none
        return processor
    except (OSError, RuntimeError) as error:
        not_one = TinyslebError(f"{path} is not a SentencePiece model: {error}")
        raise wrong_file(path) or not_one from error


def _from_folder(source: TokenizerFolder) -> ModelTokenizer:
    if source.sentencepiece is not None:
        return _sentencepiece_from_folder(source, source.sentencepiece)
    if (source.path / JSON_NAME).is_file():
        return load_tokenizer_json(source.path / JSON_NAME)
    if has_vocabulary_and_merges(source):
        return _from_vocabulary_and_merges(source)
    if (source.path / SENTENCEPIECE_NAME).is_file():
        raise TinyslebError(
            f"{source.path / SENTENCEPIECE_NAME} is a vocabulary of tiktoken, as Meta publishes it",
            f"put the model's {JSON_NAME} beside it, {TOKENS_HINT}",
        )
    raise TinyslebError(
        f"there is no tokenizer.model and no tokenizer.json in {source.path}",
        f"put the model's tokenizer files there, {TOKENS_HINT}",
    )


def _sentencepiece_from_folder(source: TokenizerFolder, path: Path) -> SentencePieceTokenizer:
    processor = load_sentencepiece(path)
    bos, eos = (index if index >= 0 else None for index in (processor.bos_id(), processor.eos_id()))
    if source.add_prefix_space is False:
        processor = _without_prefix(processor, path)
    added = {**source.added, **{token.text: index for index, token in source.decoder.items()}}
    return SentencePieceTokenizer(
        processor,
        None if source.add_bos is False else bos,
        _specials(processor) | added,
        eos if source.add_eos else None,
        frozenset(token.text for token in source.decoder.values() if token.lstrip),
        frozenset(token.text for token in source.decoder.values() if token.rstrip),
    )


def _from_vocabulary_and_merges(source: TokenizerFolder) -> ByteLevelTokenizer:
    tokenizer = load_vocabulary_and_merges(source)
    before, behind = around(source, family_of(source), tokenizer.get_vocab())
    return ByteLevelTokenizer(tokenizer, before, behind)


def load_vocabulary_and_merges(source: TokenizerFolder) -> tokenizers.Tokenizer:
    """A tokenizer in GPT-2's way, from before there was a `tokenizer.json`.

    Raises TinyslebError if the files are not sound, or do not say how text is split.
    """
    family, where = family_of(source), f"{source.path / VOCABULARY_NAME} and {MERGES_NAME}"
    package = import_tokenizers(where)
    with _package_errors(f"{where} are not a vocabulary and its merges"):
        bpe = package.models.BPE(*read_vocabulary(package, source.path))
    tokenizer, steps = _byte_level(package, bpe, family.rules), package.pre_tokenizers
    if source.add_prefix_space:
        to_bytes = steps.ByteLevel(add_prefix_space=True, use_regex=family.prefix_first)
        splits = [] if family.prefix_first else _splits(package, family.rules)
        tokenizer.pre_tokenizer = steps.Sequence([*splits, to_bytes])
    for token in tokens_to_add(source, family):
        tokenizer.add_tokens([_packaged(package, token)])
    return tokenizer


def _packaged(package: Any, token: AddedToken) -> Any:
    """A token as the package has it; whether it is special changes how it is found in a normalised text."""
    special = bool(token.special)
    return package.AddedToken(
        token.text, lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word, special=special,
        normalized=not special if token.normalized is None else token.normalized,
    )  # fmt: skip


def _without_prefix(processor: SentencePieceProcessor, path: Path) -> SentencePieceProcessor:
    """The same vocabulary, but no space is put before a text."""
    if model_kind(processor.serialized_model_proto()) != BPE:
        raise TinyslebError(f"{path} is not a BPE model, so `add_prefix_space` cannot be false")
    pieces, scores, types = zip(*model_pieces(processor), strict=True)
    return SentencePieceProcessor(
        model_proto=sentencepiece_bpe_model(pieces, scores, types, dummy_prefix=False)
    )


def _specials(processor: SentencePieceProcessor) -> dict[str, int]:
    pieces = enumerate(model_pieces(processor))
    return {text: index for index, (text, _, kind) in pieces if kind in (UNKNOWN, CONTROL)}


def tokenizer_from_gguf(vocabulary: GgufVocabulary) -> ModelTokenizer:
    """The tokenizer that a GGUF's vocabulary describes. Raises TinyslebError as `open_tokenizer` does."""
    if not vocabulary.tokens:
        raise TinyslebError(f"{vocabulary.where} holds no tokenizer", f"take a complete GGUF, {TOKENS_HINT}")
    if vocabulary.model == "llama":
        return _sentencepiece_from_gguf(vocabulary)
    if vocabulary.model == BYTE_LEVEL:
        return _byte_level_from_gguf(vocabulary)
    raise TinyslebError(
        f"{vocabulary.where}: `tokenizer.ggml.model` is {shown(vocabulary.model)}; "
        "supported are 'llama' and 'gpt2'",
        f"take another file of the model, {TOKENS_HINT}",
    )


def _sentencepiece_from_gguf(vocabulary: GgufVocabulary) -> SentencePieceTokenizer:
    tokens, types = vocabulary.tokens, vocabulary.types
    if not vocabulary.scores:
        raise TinyslebError(f"{vocabulary.where}: {len(tokens)} tokens but 0 token scores")
    unknown = vocabulary.unknown
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else 0
    pieces = [CONTROL if type_ == UNKNOWN else type_ for type_ in types]
    pieces[unknown] = UNKNOWN  # the library wants exactly one
    proto = sentencepiece_bpe_model(
        tokens, vocabulary.scores, pieces, dummy_prefix=vocabulary.add_space_prefix
    )
    try:
        processor = SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise TinyslebError(
            f"{vocabulary.where}: its vocabulary is not a SentencePiece model: {shown(str(error))}"
        ) from error
    kinds = (UNKNOWN, CONTROL, USER_DEFINED)
    specials = {token: index for index, token in enumerate(tokens) if types[index] in kinds}
    return SentencePieceTokenizer(processor, _bos(vocabulary, default=True), specials, vocabulary.eos)


def _byte_level_from_gguf(vocabulary: GgufVocabulary) -> ByteLevelTokenizer:
    where, tokens = vocabulary.where, vocabulary.tokens
    rules = _rules(vocabulary)
    if not vocabulary.merges and any(
        len(token) > 1 and type_ == NORMAL for token, type_ in zip(tokens, vocabulary.types, strict=True)
    ):
        raise TinyslebError(
            f"{where}: its tokens are of a byte-level BPE, but it has no `{PREFIX}merges`: every character "
            "would be a token of its own",
            f"take a GGUF that llama.cpp loads, or convert the model again, {TOKENS_HINT}",
        )
    package = import_tokenizers(where)
    merges = [tuple(pair.split(" ", 1)) for pair in vocabulary.merges]
    indices = {token: index for index, token in enumerate(tokens)}
    with _package_errors(f"{where}: its vocabulary and merges do not match"):
        bpe = package.models.BPE(indices, merges, ignore_merges=rules.ignore_merges)
    tokenizer = _byte_level(package, bpe, rules)
    for kind, add in ((CONTROL, "add_special_tokens"), (USER_DEFINED, "add_tokens")):
        named = [token for token, type_ in zip(tokens, vocabulary.types, strict=True) if type_ == kind]
        getattr(tokenizer, add)([package.AddedToken(t, normalized=False) for t in named])
    return ByteLevelTokenizer(tokenizer, _bos(vocabulary, default=rules.add_bos), vocabulary.eos)


def _rules(vocabulary: GgufVocabulary) -> PreTokenizer:
    """How the text is split before it is merged. Raises TinyslebError if that is not known."""
    if vocabulary.pre in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[vocabulary.pre]
    says = f"`{PRE_KEY}` is {shown(vocabulary.pre)}, a way of splitting text that is not known here"
    if not vocabulary.pre:
        says = f"it has no `{PRE_KEY}`, so that it is not known how text is split"
    raise TinyslebError(
        f"{vocabulary.where}: {says}",
        f"if you know it, name it with --pre; known: {', '.join(PRE_TOKENIZERS)}; {TOKENS_HINT}",
    )


def _byte_level(package: Any, bpe: Any, rules: PreTokenizer) -> tokenizers.Tokenizer:
    """A tokenizer without added tokens."""
    steps = package.pre_tokenizers
    to_bytes = steps.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer: tokenizers.Tokenizer = package.Tokenizer(bpe)
    tokenizer.pre_tokenizer = steps.Sequence([*_splits(package, rules), to_bytes])
    tokenizer.decoder = package.decoders.ByteLevel()
    if rules.normal_form:
        tokenizer.normalizer = getattr(package.normalizers, rules.normal_form)()
    return tokenizer


def _splits(package: Any, rules: PreTokenizer) -> list[Any]:
    split = package.pre_tokenizers.Split
    return [split(package.Regex(pattern), "isolated") for pattern in rules.patterns]


def _bos(vocabulary: GgufVocabulary, default: bool) -> int | None:
    """The token in front of a text, if there is one; a file that has no index for it means llama.cpp's."""
    adds = default if vocabulary.add_bos is None else vocabulary.add_bos
    if not adds or vocabulary.bos is not None:
        return vocabulary.bos if adds else None
    index = DEFAULT_BOS[vocabulary.model]
    return index if index < len(vocabulary.tokens) else None
