"""Whether one GGUF can draft for another in llama.cpp's speculative decoding: the vocabulary must match.

What llama.cpp compares: `common_speculative_are_compatible` in its `common/speculative.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import GgufFile

MOST_MORE_TOKENS = 128
FIRST_COMPARED_TOKEN = 5


def check_draft(draft: GgufFile, target: GgufFile) -> None:
    """Raise TinyslebError naming what keeps `draft` from drafting for `target`."""
    problem = next(_mismatches(draft.values(), target.values()), None)
    if problem is not None:
        raise TinyslebError(
            f"{draft.path} cannot draft for {target.path} in llama.cpp: {problem}",
            "a shortened model drafts for the model it was made from, and for others with its vocabulary",
        )


def _mismatches(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    kind = "tokenizer.ggml.model"
    defaults = {"bos": ours.get(kind) == "llama", "eos": False}
    if ours.get(kind) != theirs.get(kind):
        yield f"`{kind}` is {ours.get(kind)!r} and {theirs.get(kind)!r}"
    for end, default in defaults.items():
        adds, key = f"tokenizer.ggml.add_{end}_token", f"tokenizer.ggml.{end}_token_id"
        added = [values.get(adds, default) for values in (ours, theirs)]
        if added[0] != added[1]:
            yield f"`{adds}` is {added[0]} and {added[1]}"
        if added[0] and ours.get(key) != theirs.get(key):
            yield f"`{key}` is {ours.get(key)!r} and {theirs.get(key)!r}"
    tokens, their_tokens = (values.get("tokenizer.ggml.tokens") or [] for values in (ours, theirs))
    if abs(len(tokens) - len(their_tokens)) > MOST_MORE_TOKENS or not tokens:
        yield f"the vocabularies have {len(tokens)} and {len(their_tokens)} tokens"
    for index, (one, other) in enumerate(zip(tokens, their_tokens, strict=False)):
        if index >= FIRST_COMPARED_TOKEN and one != other:
            yield f"token {index} is {one!r} and {other!r}"
