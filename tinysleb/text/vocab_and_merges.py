"""A tokenizer of `vocab.json` and `merges.txt`, for folders without the `tokenizer.json` that says the rest.

The rest is what transformers' class for the family has (`tokenization_gpt2.py` and `tokenization_qwen2.py`
under `models`): how text is split, which tokens are special, and in which order those that the vocabulary
lacks are appended to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.tokenizer_folder import (
    CONFIG_NAME,
    JSON_NAME,
    MERGES_NAME,
    VOCABULARY_NAME,
    AddedToken,
    TokenizerFolder,
)
from tinysleb.errors import TinyslebError, shown
from tinysleb.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

END_OF_TEXT = "<|endoftext|>"
LARGEST_INDEX = 2**22
ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""In the order in which transformers adds the tokens that have them."""


@dataclass(frozen=True)
class Family:
    """How a class of transformers splits text (`pre`: llama.cpp's name for it), and the roles whose token is
    END_OF_TEXT unless named.

    `prefix_first`: a space is put before the text, where that is asked for, and not before every piece of it.
    """

    pre: str
    end_of_text: tuple[str, ...]
    prefix_first: bool = True

    @property
    def rules(self) -> PreTokenizer:
        """How text is split."""
        return PRE_TOKENIZERS[self.pre]


FAMILIES = {
    "GPT2Tokenizer": Family("gpt-2", ("bos_token", "eos_token", "unk_token")),
    "CodeGenTokenizer": Family("gpt-2", ("bos_token", "eos_token", "unk_token")),
    "Qwen2Tokenizer": Family("qwen2", ("eos_token", "unk_token", "pad_token"), prefix_first=False),
}
MODEL_FAMILIES = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
"""By model type, for folders that name no class, or a wrong one as Qwen 2's do."""


def family_of(source: TokenizerFolder) -> Family:
    """The family of a folder's tokenizer. Raises TinyslebError if the files do not say it."""
    name = source.family
    if source.model_type == "qwen2" or not name:
        name = MODEL_FAMILIES.get(source.model_type, name)
    if name not in FAMILIES:
        raise TinyslebError(
            f"{source.path} has {VOCABULARY_NAME} and {MERGES_NAME}, and no tokenizer.json; then "
            f"`tokenizer_class` says how text is split, and it is {shown(name)}",
            f"put the model's tokenizer.json there, or name the class in {CONFIG_NAME}; "
            f"known: {', '.join(FAMILIES)}",
        )
    return FAMILIES[name]


def read_vocabulary(package: Any, folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges as the `tokenizers` package reads them. Raises what it raises, and ValueError for an
    index that it would end the process for: it allocates all that are below."""
    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    path = folder / VOCABULARY_NAME
    vocabulary, merges = package.models.BPE.read_file(str(path), str(folder / MERGES_NAME))
    if vocabulary and (largest := max(vocabulary.values())) > LARGEST_INDEX:
        raise ValueError(f"a token has the index {largest}")
    return vocabulary, merges


def tokens_to_add(source: TokenizerFolder, family: Family) -> list[AddedToken]:
    """The tokens that are taken whole, in the order in which those that are new get their indices."""
    named: dict[str, AddedToken | None] = dict.fromkeys(
        family.end_of_text, AddedToken(END_OF_TEXT, special=True)
    )
    named |= {role: token for role, token in source.named.items() if role in ROLES}
    with_roles = [token for role in ROLES if (token := named.get(role)) is not None] + list(source.extra)
    special = {token.text for token in with_roles}
    decoder = source.decoder or {
        index: AddedToken(text, special=text in special) for text, index in source.added.items()
    }
    tokens = [token for _, token in sorted(decoder.items())] + with_roles
    found: dict[str, AddedToken] = {}
    for token in tokens:
        found.setdefault(token.text, token)
    return list(found.values())


def around(
    source: TokenizerFolder, family: Family, indices: Mapping[str, int]
) -> tuple[int | None, int | None]:
    """The tokens put before and behind a text, if any; `indices` has those of all tokens."""
    texts: dict[str, str | None] = dict.fromkeys(family.end_of_text, END_OF_TEXT)
    texts |= {role: token.text if token else None for role, token in source.named.items()}

    def index(role: str, is_added: bool | None) -> int | None:
        text = texts.get(role)
        return indices[text] if is_added and text is not None else None

    return index("bos_token", source.add_bos), index("eos_token", source.add_eos)


def has_vocabulary_and_merges(source: TokenizerFolder) -> bool:
    """Whether a folder's tokenizer is that of the two files."""
    if source.sentencepiece is not None or (source.path / JSON_NAME).is_file():
        return False
    return all((source.path / name).is_file() for name in (VOCABULARY_NAME, MERGES_NAME))
