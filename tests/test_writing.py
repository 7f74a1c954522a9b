"""Whether a model still writes: its answers against transformers' own, and measures counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result

from reference import CORPUS, llama_cpp_tokens, make_llama, transformers_logits, transformers_model
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.measure import drawn as measure_drawn
from tinysleb.measure import writing as measure_writing
from tinysleb.measure.drawn import draw, reverse_divergence
from tinysleb.measure.language import language_of
from tinysleb.measure.prompts import PROMPTS, Prompt
from tinysleb.measure.writing import (
    WRITTEN,
    Answer,
    Questions,
    answer,
    judge,
    model_to_write,
    questions,
    repeated,
)
from tinysleb.text.tokenizer import open_tokenizer

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@pytest.mark.parametrize("tokenizer", ["byte-level", "sentencepiece"])
def test_answers_are_those_of_transformers(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_writing, "WRITTEN", WRITTEN)
    folder = make_llama(tmp_path, tokenizer=tokenizer)
    weights = open_model(folder)
    asked = questions(weights, PROMPTS[:4])
    assert PROMPTS[1].text in asked.decode(asked.tokens[1])
    model = transformers_model(folder)
    for tokens, found in zip(
        asked.tokens, answer(model_to_write(weights, asked, COMPUTE), asked), strict=True
    ):
        expected = model.generate(
            torch.tensor([tokens]), max_new_tokens=WRITTEN, do_sample=False, eos_token_id=list(asked.ends)
        )[0, len(tokens) :].tolist()
        ended = expected[-1] in asked.ends
        assert (list(found.tokens), found.ended) == (expected[: len(expected) - ended], ended)


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, tokenizer="sentencepiece")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT}))
    weights = open_model(folder)
    asked = questions(weights, PROMPTS[:1])
    plain = open_tokenizer(weights).encode(f"user: {PROMPTS[0].text}\nassistant:")
    assert list(asked.tokens[0]) == plain, "with one BOS token, which the tokenizer puts there"


def test_a_template_that_makes_nothing_of_a_question_is_not_used(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, tokenizer="sentencepiece")
    plain = questions(open_model(folder), PROMPTS[:2])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "\n"}))
    assert questions(open_model(folder), PROMPTS[:2]).tokens == plain.tokens


def test_texts_are_decoded(tiny_gguf: Path, tiny_folder: Path, sentencepiece_folder: Path) -> None:
    text = "".join(CORPUS)
    for path in (tiny_gguf, tiny_folder, sentencepiece_folder):
        tokenizer = open_tokenizer(open_model(path))
        found = tokenizer.decode(tokenizer.encode(text))
        assert found == (text if path != sentencepiece_folder else found)
        assert found.split() == text.split()
        assert tokenizer.decode([10**6]) == "", "a row of the embedding without a token"
    assert open_tokenizer(open_model(tiny_gguf)).decode(llama_cpp_tokens(tiny_gguf, text)) == text


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The train leaves at eight, and it is late.", "en"),
        ("Das Wetter ist heute schön, und wir gehen an den See.", "de"),
        ("Le train pour la mer part à huit heures.", "fr"),
        ("La fotosíntesis es el proceso de las plantas.", "es"),
        ("def f(x): return x", None),
        ("", None),
    ],
)
def test_languages_are_told_apart(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_repetition_is_counted_by_hand() -> None:
    assert repeated([1, 2, 3]) == 0
    assert repeated([1, 2, 3, 4, 5]) == 0
    assert repeated([1, 2] * 4) == pytest.approx(3 / 5), "1 2 1 2 three times, 2 1 2 1 twice"
    assert repeated([9] * 13) == pytest.approx(9 / 10)


def test_measures_are_averages_over_answers() -> None:
    prompts = [Prompt("a", "en"), Prompt("b", "de"), Prompt("c", None)]
    asked = Questions(prompts, [[1]] * 3, frozenset({0}), str)
    original = [
        Answer([1, 2, 3, 4], "the cat is", True),
        Answer([5, 6], "der Hund", True),
        Answer([7], "x", False),
    ]
    found = [
        Answer([1, 2, 9, 4], "the cat", True),
        Answer([5, 6], "the dog", False),
        Answer([8] * 5, "x", False),
    ]
    writing = judge(asked, found, original)
    assert writing.agreement == pytest.approx((2 + 2 + 0) / 3)
    assert writing.ended == pytest.approx(1 / 3)
    assert writing.language == pytest.approx(1 / 2)
    assert writing.repeated == pytest.approx((0 + 0 + 1 / 2) / 3)


def test_what_was_written_is_shown(run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "__defaults__", (PROMPTS,))  # all of them
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    Path("t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    words = ("compare", tiny_folder, "p.json", "--text", "t.txt", "--window-length", 64)
    shown = run(*words, "--show")
    assert shown.exit_code == 0, shown.output
    assert f"> {PROMPTS[5].text}" in shown.stdout
    assert shown.stdout.count("\np.json: ") == shown.stdout.count("\np.json, drawn: ") == len(PROMPTS)
    found = json.loads(run(*words, "--json").stdout)
    assert [text["prompt"] for text in found["texts"]] == [prompt.text for prompt in PROMPTS]
    assert set(found["texts"][0]["texts"]) == set(found["texts"][0]["drawn"]) == {str(tiny_folder), "p.json"}
    original, cut = (row["writing"] for row in found["models"])
    assert original["agreement"] > cut["agreement"]
    assert (original["reverse_kld"], original["reverse_kld_error"]) == (0, 0)
    assert cut["reverse_kld"] > 2 * cut["reverse_kld_error"] > 0
    little = run(*words, "--memory", "1MiB")
    assert little.exit_code == 1
    assert "of memory" in little.stderr


def test_without_a_tokenizer_the_rest_is_measured(run: Run, tmp_path: Path) -> None:
    import numpy as np

    folder = make_llama(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    np.save("t.npy", np.arange(3, 67, dtype=np.int32).reshape(1, 64))
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    result = run("compare", folder, "p.json", "--tokens", "t.npy", "--json")
    assert result.exit_code == 0, result.output
    assert "the models are not asked to write: there is no tokenizer.model" in result.stderr
    assert json.loads(result.stdout)["models"][1]["writing"] is None


def test_what_is_drawn_ends_where_an_answer_ends(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_drawn, "DRAWS", 2)
    monkeypatch.setattr(measure_drawn, "WRITTEN", WRITTEN)
    weights = open_model(tiny_folder)
    asked = questions(weights, PROMPTS[:3])
    often = replace(asked, ends=frozenset(range(0, 512, 20)))
    drawn = draw(model_to_write(weights, often, COMPUTE), often)
    assert len(drawn.tokens) == 3 * 2
    for row, mask, number in zip(drawn.tokens.tolist(), drawn.written.tolist(), range(6), strict=True):
        begin = len(asked.tokens[number % 3])
        assert row[:begin] == list(asked.tokens[number % 3])
        wrote = [token for token, by_model in zip(row[1:], mask, strict=True) if by_model]
        ended = [place for place, token in enumerate(wrote) if token in often.ends]
        assert wrote == row[begin : begin + len(wrote)]
        assert ended == [len(wrote) - 1] if ended else len(wrote) == WRITTEN
        if number < 3:
            text = drawn.answers[number]
            assert [*text.tokens] == wrote[: len(text.tokens)]
            assert text.ended == bool(ended) == (len(text.tokens) == len(wrote) - 1)


def test_reverse_divergence_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against both distributions over the whole vocabulary where the tokens were drawn, within the error."""
    monkeypatch.setattr(measure_drawn, "DRAWS", 3)
    monkeypatch.setattr(measure_drawn, "WRITTEN", 64)
    weights, original = (
        open_model(make_llama(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))
    )
    asked = questions(weights, PROMPTS)
    drawn = draw(model_to_write(weights, asked, COMPUTE), asked)
    one, other = (
        transformers_logits(transformers_model(tmp_path / name), drawn.tokens)[:, :-1].log_softmax(-1)
        for name in ("a", "b")
    )
    mean, error = reverse_divergence(weights, original, drawn, COMPUTE)
    chosen = drawn.tokens[:, 1:, None]
    by_tokens = (one - other).gather(-1, chosen)[..., 0][drawn.written]
    assert mean == pytest.approx(by_tokens.mean().item(), abs=1e-5)
    whole = (one.exp() * (one - other)).sum(-1)[drawn.written].mean().item()
    assert abs(mean - whole) < 4 * error
    assert 0 < error < 0.2 * mean
    assert reverse_divergence(weights, weights, drawn, COMPUTE) == (0.0, 0.0)
