"""Which GGUFs may draft for which, against what llama.cpp itself accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import xllamacpp
from click.testing import Result

from reference import llama_cpp_speculative, with_metadata
from tinysleb.errors import TinyslebError
from tinysleb.export.draft import check_draft
from tinysleb.formats.gguf_file import GgufValue, read_gguf

Run = Callable[..., Result]


def test_a_shortened_model_drafts_for_its_original(tiny_gguf: Path, run: Run) -> None:
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [2, 3]}))
    assert run("prune", tiny_gguf, "--plan", "p.json", "-o", "cut.gguf").exit_code == 0
    result = run("export", "cut.gguf", "--gguf", "draft.gguf", "--draft", tiny_gguf)
    assert result.exit_code == 0, result.output
    assert f"llama-server -m {tiny_gguf} -md draft.gguf --spec-type draft-simple\n" in result.stdout
    assert hasattr(xllamacpp.common_speculative_type, "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE")
    text, timings = llama_cpp_speculative(tiny_gguf, Path("draft.gguf"))
    assert text
    assert timings["draft_n"] > 0


def changed_token(tokens: list[str]) -> list[str]:
    return [*tokens[:300], "other", *tokens[301:]]


def test_a_draft_that_costs_too_much_is_warned_of(tiny_gguf: Path, run: Run) -> None:
    """Without one of six blocks; not in q8_0, a quarter of the bytes. At the rate that is named, the best
    length gives as many tokens as it costs: 1 + a + … + aᵏ for k + 1 passes of the draft and one of its
    original's."""
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [2]}))
    assert run("prune", tiny_gguf, "--plan", "p.json", "-o", "cut.gguf").exit_code == 0
    result = run("export", "cut.gguf", "--gguf", "draft.gguf", "--draft", tiny_gguf)
    read = [
        sum(t.nbytes for n, t in read_gguf(p).tensors.items() if n != "token_embd.weight")
        for p in (Path("draft.gguf"), tiny_gguf)
    ]
    cost = read[0] / read[1]
    assert f"draft.gguf costs {cost:.0%} of one of {tiny_gguf}" in result.stderr
    (least,) = re.findall(r"unless more than (\d+)% are accepted", result.stderr)
    gains = [
        (sum((int(least) / 100) ** power for power in range(k + 1)), (k + 1) * cost + 1) for k in range(1, 17)
    ]
    assert max(tokens / time for tokens, time in gains) == pytest.approx(1, abs=0.01)
    result = run("export", tiny_gguf, "--gguf", "small.gguf", "--type", "q8_0", "--draft", tiny_gguf)
    assert "warning" not in result.stderr


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"tokenizer.ggml.model": "llama"}, "`tokenizer.ggml.model`"),
    "another first token": (
        {"tokenizer.ggml.add_bos_token": True},
        "`tokenizer.ggml.add_bos_token` is True and False",
    ),
    "another token": ({"tokenizer.ggml.tokens": changed_token}, "token 300 is"),
    "fewer tokens": ({"tokenizer.ggml.tokens": lambda tokens: tokens[:380]}, "have 380 and 512 tokens"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_vocabulary_is_refused(name: str, tiny_gguf: Path, tmp_path: Path) -> None:
    values, message = CHANGES[name]
    file = read_gguf(tiny_gguf)
    changes = {}
    for key, value in values.items():
        kind = gguf.GGUFValueType.BOOL if value is True else gguf.GGUFValueType.STRING
        item = file.metadata.get(key, GgufValue(None, kind))
        changes[key] = GgufValue(value(item.value) if callable(value) else value, item.type, item.item_type)
    other = with_metadata(tiny_gguf, tmp_path / "other.gguf", changes)
    with pytest.raises(TinyslebError, match=r"cannot draft for .* in llama\.cpp") as caught:
        check_draft(read_gguf(other), file)
    assert message in caught.value.message
