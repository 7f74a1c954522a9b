"""Chats as calibration text: rendered and tokenised as transformers does, or refused by the line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from reference import CORPUS
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError
from tinysleb.text import given_text, windows
from tinysleb.text.given_text import ChatText, PlainText, given_texts, holds_chats
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import WindowSource, read_windows

Run = Callable[..., Any]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATS = [
    [
        {"role": "user", "content": f"Question {number}: {text}"},
        {"role": "assistant", "content": text.upper() + "\n"},
    ]
    for number, text in enumerate(line for _ in range(12) for line in CORPUS)
]


def lines(chats: list[Any]) -> str:
    return "".join(
        json.dumps({"id": n, "messages": chat}, ensure_ascii=False) + "\n" for n, chat in enumerate(chats)
    )


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text(lines(CHATS), encoding="utf-8")
    return path


@pytest.fixture(params=["byte-level", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model that chats; of the one kind the tokenizer puts a BOS in front, of the other it does not."""
    name = "tiny_folder" if request.param == "byte-level" else "sentencepiece_folder"
    copy = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "model"))
    config = copy / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    return copy


def test_windows_are_the_chats_as_transformers_tokenises_them(folder: Path, chats: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = [
        token
        for chat in CHATS
        for token in theirs.apply_chat_template(chat, tokenize=True, return_dict=False)
    ]
    found = read_windows(open_model(folder), WindowSource([chats], None, None, 64), seed=None).tokens
    assert len(found) == len(expected) // 64
    assert found.flatten().tolist() == expected[: found.numel()]


def test_batches_do_not_show(folder: Path, chats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = WindowSource([chats], None, None, 64)
    whole = read_windows(open_model(folder), source, seed=None).tokens
    monkeypatch.setattr(given_text, "AT_ONCE", 7)
    monkeypatch.setattr(given_text, "CHARACTERS_AT_ONCE", 300)
    assert read_windows(open_model(folder), source, seed=None).tokens.equal(whole)


def test_a_sample_of_many_chats_has_whole_ones(
    folder: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretches begin and end within lines; every window then comes of chats that lie wholly in one."""
    weights = open_model(folder)
    opened = given_texts(weights, open_tokenizer(weights))(chats)
    middle = opened.between(1000, 4000)
    bos = weights.tokenizer_files().special_tokens.get("bos_token", "")
    assert middle.removeprefix(bos).startswith("<|user|>Question ")
    assert middle in "".join(opened.parts())
    monkeypatch.setattr(windows, "LONG_TEXT", 100)
    monkeypatch.setattr(windows, "STRETCH", 2000)
    found = read_windows(weights, WindowSource([chats], None, 3, 16), seed=1).tokens
    assert found.shape == (3, 16)


def test_what_holds_chats(tmp_path: Path, chats: Path) -> None:
    assert holds_chats(chats)
    shutil.copy(chats, tmp_path / "chats.txt")
    (tmp_path / "other.jsonl").write_text('{"text": "plain"}\n')
    (tmp_path / "none.jsonl").write_text("no JSON\n")
    assert not any(
        holds_chats(tmp_path / name) for name in ("chats.txt", "other.jsonl", "none.jsonl", "absent.jsonl")
    )


WRONG = {
    "{}": "line 2 is not a chat, but '{}'",
    "[1]": "line 2 is not a chat, but '[1]'",
    '{"messages": []}': "line 2 is not a chat",
    '{"messages": [{"role": "user"}]}': "line 2 is not a chat",
    '{"messages": [{"role": "user", "content": 3}]}': "line 2 is not a chat",
    '{"messages": [{"role": "tool", "content": "x"}]}': "line 2 is not taken by the model's chat template: "
    "'TemplateError: no tools'",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_a_line_that_cannot_be_used_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(lines(CHATS[:1]) + line + "\n\n" + lines(CHATS[1:2]))
    template = "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + TEMPLATE
    with pytest.raises(TinyslebError) as caught:
        list(ChatText(path, template, {}, "").parts())
    assert caught.value.message.startswith(f"{path}: {message}")


def test_a_model_that_does_not_chat(folder: Path, chats: Path, run: Run) -> None:
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": ""}))
    result = run("eval", folder, "--text", chats)
    assert result.exit_code == 1
    assert f"{chats} holds chats, and {folder} has no chat template to render them in" in result.stderr


def test_a_model_is_pruned_and_healed_on_chats(folder: Path, chats: Path, run: Run, tmp_path: Path) -> None:
    words = (
        "--windows",
        2,
        "--window-length",
        64,
        "--heal",
        "solve",
        "--heal-tokens",
        2048,
        "--self-text",
        0,
    )
    result = run("prune", folder, "-o", "out", "--remove", 1, "--text", chats, "--self-text", 0, *words)
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["settings"]["text"] == "chats.jsonl"
    assert [source["source"] for source in plan["healing"]["sources"]] == ["chats.jsonl"]


def test_a_plain_text_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("eins\r\nzwei")
    assert "".join(PlainText(tmp_path / "t.txt").parts()) == "eins\nzwei"


def test_single_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path: Path) -> None:
    data = b"\xe2\x82\xac " * 300 + b"\xf6 \xed\xa0\x80\r\n" + b"word " * 30 + b"\xe2\x82"
    (tmp_path / "t.txt").write_bytes(data)
    expected = data.decode("utf-8", "replace").replace("\r\n", "\n")
    text = PlainText(tmp_path / "t.txt")
    assert "".join(text.parts()).rstrip("\ufffd") == expected.rstrip("\ufffd")
    assert text.replaced == 1 + 3 + 2
    assert text.between(600, 1340).count("\ufffd") == 4
    assert text.replaced == 6 + 4


def test_how_many_bytes_were_replaced_is_in_the_plan(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"some words \xf6 " * 3 + b"more words and more " * 200)
    words = ("--text", "t.txt", "--windows", 1, "--window-length", 16, "--no-heal", "--json")
    result = run("prune", tiny_folder, "-o", "out", "--remove", 1, *words)
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["settings"]["text"] == "t.txt (bytes that are not UTF-8: 3)"
