"""The tokenizer in a GGUF's metadata, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinysleb.checkpoint.settings import SettingsReader
from tinysleb.errors import TinyslebError

PREFIX = "tokenizer.ggml."
MODEL_KEY, PRE_KEY = PREFIX + "model", PREFIX + "pre"
BYTE_LEVEL = "gpt2"
"""What a GGUF calls the vocabulary of a byte-level BPE."""
LARGEST_TYPE = 6
"""Types are those of SentencePiece: `text/sentencepiece_model.py` names them."""


@dataclass(frozen=True)
class GgufVocabulary:
    """What `tokenizer.ggml.*` says. Without a tokenizer, `tokens` is empty.

    Tokens have a text and a type each, and in a SentencePiece vocabulary a score. `pre` names the way of
    splitting text before it is merged. `add_bos` and `unknown` are None where the file does not say; `eos` is
    None unless it is added behind a text.
    `special_tokens`: the texts of those with a role, as chat templates name them.
    """

    where: str
    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    bos: int | None
    eos: int | None
    unknown: int | None
    add_bos: bool | None
    add_space_prefix: bool
    special_tokens: Mapping[str, str]

    @property
    def kind(self) -> str:
        """A few words for people: `gpt2 smollm`."""
        return " ".join(filter(None, (self.model, self.pre))) or "none"


def read_gguf_vocabulary(metadata: Mapping[str, Any], where: str) -> GgufVocabulary:
    """The tokenizer in `metadata` (key → value). `where` names the file in errors.

    Raises TinyslebError for a value of the wrong type, or lists that do not belong together.
    """
    values = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if not values.get("tokens"):  # then nothing that goes with them matters
        values = {key: values[key] for key in ("model", "pre") if key in values}
    read = SettingsReader(values, where, PREFIX)
    tokens, types, scores = (
        read.texts("tokens"),
        read.integers("token_type", most=LARGEST_TYPE),
        read.reals("scores"),
    )
    for what, found in (("types", types), ("scores", scores)):
        if found and len(found) != len(tokens):
            raise TinyslebError(f"{where}: {len(tokens)} tokens but {len(found)} token {what}")
    return GgufVocabulary(
        where=where,
        model=read.text("model", default=""),
        pre=read.text("pre", default=""),
        tokens=tokens,
        types=types or [1] * len(tokens),
        scores=scores,
        merges=read.texts("merges"),
        bos=read.token("bos_token_id", len(tokens)),
        eos=read.token("eos_token_id", len(tokens)) if read.switch("add_eos_token") else None,
        unknown=read.token("unknown_token_id", len(tokens)),
        add_bos=read.switch("add_bos_token") if "add_bos_token" in values else None,
        add_space_prefix=read.switch("add_space_prefix", default=True),
        special_tokens={
            role: tokens[index]
            for role in ("bos_token", "eos_token")
            if isinstance(index := values.get(f"{role}_id"), int) and 0 <= index < len(tokens)
        },
    )
