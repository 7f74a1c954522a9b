"""Whether one GGUF can draft for another in llama.cpp's speculative decoding: the vocabulary must match, and
the draft must cost much less.

What llama.cpp compares: `common_speculative_are_compatible` in its `common/speculative.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinysleb.checkpoint.settings import SettingsReader
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.gguf_file import GgufFile
from tinysleb.search.speculative import GENEROUS, least_acceptance

MOST_MORE_TOKENS = 128
FIRST_COMPARED_TOKEN = 5


def check_draft(draft: GgufFile, target: GgufFile) -> None:
    """Raise TinyslebError naming what keeps `draft` from drafting for `target`."""
    ours, theirs = (SettingsReader(file.values(), str(file.path)) for file in (draft, target))
    problem = next(_mismatches(ours, theirs), None)
    if problem is not None:
        raise TinyslebError(
            f"{draft.path} cannot draft for {target.path} in llama.cpp: {problem}",
            "a shortened model drafts for the model it was made from, and for others with its vocabulary",
        )


def cost_warning(draft: GgufFile, target: GgufFile) -> str:
    """What to say if a draft costs so much that it hardly pays, however well it guesses; else ''. A token
    costs the bytes that are read for it."""
    cost = _read_for_a_token(draft) / max(1, _read_for_a_token(target))
    least = least_acceptance(cost)
    if least <= GENEROUS:
        return ""
    price = f"a token of {draft.path} costs {cost:.0%} of one of {target.path}, so that drafting makes it"
    if least > 1:
        return f"warning: {price} slower, however many are accepted"
    return f"warning: {price} slower, unless more than {least:.0%} are accepted"


def _read_for_a_token(file: GgufFile) -> int:
    """All tensors; of an embedding that is not the head as well, only a row is read."""
    embedding = file.tensors.get("token_embd.weight")
    apart = embedding.nbytes if embedding is not None and "output.weight" in file.tensors else 0
    return sum(tensor.nbytes for tensor in file.tensors.values()) - apart


def _mismatches(ours: SettingsReader, theirs: SettingsReader) -> Iterator[str]:
    kind = "tokenizer.ggml.model"
    kinds = [read.text(kind, default="") for read in (ours, theirs)]
    if kinds[0] != kinds[1]:
        yield f"`{kind}` is {shown(kinds[0])} and {shown(kinds[1])}"
    tokens, their_tokens = (read.texts("tokenizer.ggml.tokens") for read in (ours, theirs))
    pairs = (ours, tokens), (theirs, their_tokens)
    if abs(len(tokens) - len(their_tokens)) > MOST_MORE_TOKENS or not tokens:
        yield f"the vocabularies have {len(tokens)} and {len(their_tokens)} tokens"
    for end, default in (("bos", kinds[0] == "llama"), ("eos", False)):
        adds, key = f"tokenizer.ggml.add_{end}_token", f"tokenizer.ggml.{end}_token_id"
        added = [read.switch(adds, default=default) for read in (ours, theirs)]
        if added[0] != added[1]:
            yield f"`{adds}` is {added[0]} and {added[1]}"
        ids = [read.token(key, len(found)) if added[0] else None for read, found in pairs]
        if ids[0] != ids[1]:
            yield f"`{key}` is {ids[0]} and {ids[1]}"
    for index, (one, other) in enumerate(zip(tokens, their_tokens, strict=False)):
        if index >= FIRST_COMPARED_TOKEN and one != other:
            yield f"token {index} is {shown(one)} and {shown(other)}"
