"""Whether one GGUF can draft for another in llama.cpp's speculative decoding: the vocabulary must match.

What llama.cpp compares: `common_speculative_are_compatible` in its `common/speculative.cpp`.
"""

from __future__ import annotations

from tinysleb.errors import TinyslebError
from tinysleb.gguf_file import GgufFile

COMPARED = ("model", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
MOST_MORE_TOKENS = 128
FIRST_COMPARED_TOKEN = 5


def check_draft(draft: GgufFile, target: GgufFile) -> None:
    """Raise TinyslebError naming what keeps `draft` from drafting for `target`."""
    ours, theirs = draft.values(), target.values()
    for name in COMPARED:
        key = f"tokenizer.ggml.{name}"
        if ours.get(key) != theirs.get(key):
            raise _mismatch(draft, target, f"`{key}` is {ours.get(key)!r} there, {theirs.get(key)!r} here")
    tokens, their_tokens = (values.get("tokenizer.ggml.tokens") or [] for values in (ours, theirs))
    if not tokens or not their_tokens:
        raise _mismatch(draft, target, "one of them has no vocabulary")
    if abs(len(tokens) - len(their_tokens)) > MOST_MORE_TOKENS:
        raise _mismatch(draft, target, f"the vocabularies have {len(tokens)} and {len(their_tokens)} tokens")
    for index, (one, other) in enumerate(zip(tokens, their_tokens, strict=False)):
        if index >= FIRST_COMPARED_TOKEN and one != other:
            raise _mismatch(draft, target, f"token {index} is {one!r} and {other!r}")


def _mismatch(draft: GgufFile, target: GgufFile, what: str) -> TinyslebError:
    return TinyslebError(
        f"{draft.path} cannot draft for {target.path} in llama.cpp: {what}",
        "a shortened model drafts for the model it was made from, and for others with its vocabulary",
    )
