"""Tasks of several choices: llama.cpp's files, and scores against transformers, one text at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from reference import make_model, make_variant, transformers_logits, transformers_model
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.measure.choices import drawn, encode_question, score_choices
from tinysleb.measure.tasks import Question, read_task
from tinysleb.text.tokenizer import open_tokenizer

HELLASWAG = (
    "Cooking: A man stands in a kitchen. He\n2\nbreaks an egg.\nflies.\ncuts the bread.\nsings a song.\n"
)
WINOGRANDE = '0,"The cup, which fell on _ and broke, was old.",tile,wood,1\n1,Ann met _ at noon.,Eve,Bob,2\n'


def multiple_choice(*questions: tuple[str, list[str], int]) -> bytes:
    """The binary file, written as the comment in llama.cpp's source says."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    def answers(texts: list[str], right: int) -> bytes:
        labels = [int(number == right) for number in range(len(texts))]
        return (
            struct.pack("<I", len(texts))
            + b"".join(map(text, texts))
            + struct.pack(f"<{len(texts)}i", *labels)
        )

    bodies = [text(context) + answers(texts, right) + answers([], 0) for context, texts, right in questions]
    return struct.pack(f"<{1 + len(bodies)}I", len(bodies), *(0 for _ in bodies)) + b"".join(bodies)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "h").write_text(HELLASWAG * 2)
    (tmp_path / "w").write_text(WINOGRANDE)
    (tmp_path / "m").write_bytes(
        multiple_choice(("Is it?", ["Yes", "No"], 1), ("Größe?", ["a", "b", "c"], 0))
    )
    (tmp_path / "c").write_text('{"context": "One", "choices": ["two", "three"], "answer": 0}\n\n')
    found = read_task("hellaswag", tmp_path / "h")
    assert len(found) == 2
    assert found[0].texts[2] == "Cooking: A man stands in a kitchen. He cuts the bread."
    assert found[0].answer == 2
    first, second = read_task("winogrande", tmp_path / "w")
    assert first.texts[0] == "The cup, which fell on tile and broke, was old."
    assert (first.answer, second.answer) == (0, 1)
    assert second.heads == ("Ann met Eve", "Ann met Bob")
    one, two = read_task("multiple_choice", tmp_path / "m")
    assert (one.texts, one.answer) == (("Is it? Yes", "Is it? No"), 1)
    assert two.texts[0] == "Größe? a"
    assert read_task("choices", tmp_path / "c") == [Question(("One two", "One three"), 0)]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("hellaswag", b"a\n1\nb\n", "has 3 lines, which is no multiple of 6"),
        (
            "hellaswag",
            HELLASWAG.replace("\n2\n", "\n4\n").encode(),
            "line 2: the right answer is '4', not one of 0",
        ),
        ("winogrande", b"0,no gap,a,b,1\n", "line 1 has 5 fields, and a sentence needs a gap"),
        ("winogrande", b"0,a _,a,b,3\n", "the right answer is '3', not one of 1"),
        ("choices", b"{", "line 1 is not JSON"),
        ("choices", b"[" * 5000, "line 1 is not JSON: it is nested too deeply"),
        ("choices", b'{"context": "a", "choices": ["b", 3], "answer": 0}', "line 1: a choice is not a text"),
        ("choices", b'{"context": 7, "choices": ["b"], "answer": 0}', "`context` is 7, and not of type str"),
        (
            "choices",
            b'{"context": "a", "choices": ["b"], "answer": 0}',
            "needs a text and two answers or more",
        ),
        ("choices", b"\n", "holds no questions"),
        ("multiple_choice", b"\x01\0\0\0", "ends at byte 4; 4 from 4 on are needed"),
        ("multiple_choice", multiple_choice(("a", ["b", "c"], 7)), "question 1 has 0 right answers"),
    ],
)
def test_wrong_files_are_refused(kind: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(TinyslebError, match=message) as raised:
        read_task(kind, tmp_path / "f")
    assert str(tmp_path / "f") in raised.value.message


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    for kind in ("hellaswag", "multiple_choice"):
        with pytest.raises(TinyslebError, match=r"cannot read .*nothing"):
            read_task(kind, tmp_path / "nothing")


QUESTIONS = [
    Question(
        tuple(f"The quick brown {word}" for word in ("fox jumps", "dog", "import sys", "fox sleeps")), 0
    ),
    Question(("print(sys.path)", "def f(x):\n\treturn x"), 1),
    Question(
        ("A lazy dog jumps over the fox.", "A lazy cat jumps over the fox."), 0, ("A lazy dog", "A lazy cat")
    ),
    Question(("It is a dog.", "It is a fox."), 1, ("It is a dog", "It is a fox")),
    *(Question((f"{n} and {n + 1}", f"{n} or {n} or the lazy dog"), n % 2) for n in range(40)),
]


@pytest.mark.parametrize("name", ["llama", "granite", "olmo2", "qwen2", "smollm3", "a window"])
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Each choice by itself, in float64 sums; with memory for a row at a time, and for all."""
    if name == "a window":
        folder = make_model("MistralForCausalLM", tmp_path, sliding_window=4)
    else:
        folder = make_variant(name, tmp_path)
    weights, model = open_model(folder), transformers_model(folder)
    encode = open_tokenizer(weights).encode
    choices = [encode_question(question, encode, 512) for question in QUESTIONS]
    right = []
    for each in choices:
        sums, means = [], []
        for tokens, start, stop in zip(each.sequences, each.starts, each.stops, strict=True):
            logits = transformers_logits(model, torch.tensor([tokens]))[0].double().log_softmax(-1)
            scored = [logits[place - 1, tokens[place]].item() for place in range(start, stop)]
            sums.append(sum(scored))
            means.append(sum(scored) / len(scored))
        right.append((sums.index(max(sums)) == each.answer, means.index(max(means)) == each.answer))
    for budget in (Budget(2**33, 0), Budget(30 * 2**20, 0)):
        found = score_choices(weights, choices, Compute(torch.device("cpu"), torch.float32, budget))
        assert found.questions == len(QUESTIONS)
        assert found.acc == sum(one for one, _ in right) / len(right)
        assert found.acc_norm == sum(two for _, two in right) / len(right)
        assert found.acc_error == pytest.approx(math.sqrt(found.acc * (1 - found.acc) / (len(right) - 1)))


def test_what_is_scored() -> None:
    """Words are tokens here: a winogrande sentence is scored behind the choice, without its last token."""
    words = ["the", "cup", "fell", "on", "tile", "and", "broke", "because", "it", "was", "old"]

    def encode(text: str) -> list[int]:
        return [1, *(10 + hash(word) % 1000 for word in text.split())]

    sentence, head = " ".join(words), " ".join(words[:5])
    other, other_head = sentence.replace("tile", "wood"), head.replace("tile", "wood")
    found = encode_question(Question((sentence, other), 0, (head, other_head)), encode, 64)
    assert (found.shared, found.starts, found.stops) == (5, [6, 6], [11, 11])
    short = encode_question(Question((head, other_head), 0, (head, other_head)), encode, 64)
    assert (short.shared, short.starts, short.stops) == (5, [5, 5], [6, 6])
    plain = encode_question(Question((head, f"{head} or not"), 1), encode, 64)
    assert (plain.shared, plain.starts, plain.stops) == (5, [5, 5], [6, 8])
    with pytest.raises(
        TinyslebError, match="a question of 12 tokens is longer than the model's context of 9"
    ):
        encode_question(Question((sentence, other), 0), encode, 9)


def test_a_sample_is_always_the_same() -> None:
    some = drawn(QUESTIONS, 5)
    assert len(some) == 5
    assert some == drawn(QUESTIONS, 5)
    assert drawn(QUESTIONS, 99) == QUESTIONS


def test_from_the_command_line(run: Callable[..., Result], tiny_folder: Path) -> None:
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    Path("t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    Path("h.txt").write_text(HELLASWAG * 3)
    Path("c.jsonl").write_text('{"context": "The quick", "choices": ["brown fox", "dog"], "answer": 0}\n')
    words = ("compare", tiny_folder, "p.json", "--text", "t.txt", "--window-length", 64)
    result = run(*words, "--hellaswag", "h.txt", "--choices", "c.jsonl", "--questions", 2, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["models"]
    assert [row["tasks"]["hellaswag"]["questions"] for row in rows] == [2, 2]
    assert [row["tasks"]["choices"]["questions"] for row in rows] == [1, 1]
