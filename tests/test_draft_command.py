"""`draft`: how often drafts are right, by transformers; which is chosen, by trying all; what is written."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from reference import (
    GREEDY_PROMPT,
    TEXT,
    llama_cpp_greedy,
    llama_cpp_speculative,
    transformers_logits,
    transformers_model,
    without_sublayers,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.cli import main
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.heal.choose_draft import Trial, choose_draft
from tinysleb.heal.draft_judge import draft_judge
from tinysleb.plan import Plan, plan_from_json
from tinysleb.search.acceptance import Judge, hits, read, written
from tinysleb.search.speculative import replayed_tokens

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
PLAN = {"blocks": 6, "removed": [4, "F2 A3", 1]}
FAST = ("--tokens", "tokens.npy", "--dtype", "float32", "--heal", "none")


@pytest.fixture(scope="module")
def idle_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with four blocks that hardly change anything."""
    folder = tmp_path_factory.mktemp("idle") / "idle"
    shutil.copytree(tiny_folder, folder)
    model = transformers_model(folder)
    with torch.no_grad():
        for layer in model.model.layers[1:5]:
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def idle_gguf(idle_folder: Path) -> Path:
    """`idle_folder` exported in f32."""
    path = idle_folder.with_suffix(".gguf")
    words = ["export", str(idle_folder), "--gguf", str(path), "--pre", "smollm"]
    assert CliRunner().invoke(main, words).exit_code == 0
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Tensor:
    """Windows, also as `tokens.npy` in the current folder."""
    found = torch.randint(3, 400, (4, 64), generator=torch.Generator().manual_seed(4))
    np.save(tmp_path / "tokens.npy", found.numpy().astype(np.int32))
    return found


def greedy(folder: Path, prompt: list[int], length: int) -> list[int]:
    """A text by transformers, with its prompt."""
    found: list[int] = (
        transformers_model(folder)
        .generate(
            torch.tensor([prompt]), do_sample=False, max_length=length, min_length=length, pad_token_id=0
        )[0]
        .tolist()
    )
    return found


def test_what_a_draft_is_judged_by_is_what_transformers_writes(tiny_folder: Path, tokens: Tensor) -> None:
    prompts = [row[: 5 + 3 * number].tolist() for number, row in enumerate(tokens)]
    texts = [greedy(tiny_folder, prompt, 40) for prompt in prompts]
    end = texts[1][20]
    stop = texts[1].index(end, len(prompts[1])) + 1
    judge = written(open_model(tiny_folder), prompts, 40, frozenset([end]), COMPUTE)
    assert judge.spans[1] == (len(prompts[1]) + 1, stop)
    assert judge.count == sum(last - first for first, last in judge.spans)
    for text, found, (_, last) in zip(texts, judge.tokens.tolist(), judge.spans, strict=True):
        assert found[:last] == text[:last]


def test_hits_are_those_of_transformers(tiny_folder: Path, tokens: Tensor) -> None:
    """On a text, against the original's favourites, and on what the original wrote."""
    weights, model = open_model(tiny_folder), transformers_model(tiny_folder)
    plan = plan_from_json(PLAN, tiny_folder)
    draft = Shortened(weights, plan.kept)
    shorter = without_sublayers(model, plan.cuts)
    top, other = (transformers_logits(each, tokens).argmax(-1)[:, :-1] for each in (model, shorter))
    assert hits(draft, read(weights, tokens, COMPUTE), COMPUTE) == (top == other).tolist()
    judge = written(weights, tokens[:, :10].tolist(), 30, frozenset(), COMPUTE)
    favourites = transformers_logits(shorter, judge.tokens).argmax(-1)
    expected = (favourites[:, 10:29] == judge.tokens[:, 11:30]).tolist()
    assert hits(draft, judge, COMPUTE) == expected
    assert 0 < sum(map(sum, expected)) < judge.count


def cost_of(plan: Plan) -> float:
    """Of a block, an eighth; of the head, a quarter."""
    return 0.25 + len(plan.kept) / 8


@pytest.mark.parametrize("healed", [False, True])
def test_the_best_draft_is_chosen(healed: bool, tiny_folder: Path, tokens: Tensor, tmp_path: Path) -> None:
    """By trying all; unhealed, what each is worth is computed anew from transformers' hits."""
    weights, model = open_model(tiny_folder), transformers_model(tiny_folder)
    judge = written(weights, tokens[:, :10].tolist(), 60, frozenset(), COMPUTE)
    trial = Trial(weights, judge, cost_of, 4, torch.inf, COMPUTE)
    plan = plan_from_json(PLAN, tiny_folder)
    told: list[int] = []
    done: list[float] = []
    chosen, tried = choose_draft(
        trial, plan, tokens if healed else None, tmp_path,
        tell=lambda plan, _found: told.append(len(plan.rounds)), progress=done.append,
    )  # fmt: skip
    assert done == sorted(done), "progress that falls begins another stage"
    assert done[-1] == pytest.approx(1)
    assert (len(done) > len(told)) == healed, "healing takes most of a try"
    assert sorted(told) == sorted(tried) == [1, 2, 3]
    assert chosen.cuts == plan.cuts[: max(tried, key=lambda count: tried[count].best.speedup)]
    assert not list(tmp_path.glob("tmp*"))
    for count, draft in {} if healed else tried.items():
        shorter = without_sublayers(model, plan.cuts[:count])
        favourites = transformers_logits(shorter, judge.tokens).argmax(-1)
        same = (favourites[:, 10:59] == judge.tokens[:, 11:]).tolist()
        assert draft.acceptance == pytest.approx(np.mean(same))
        assert draft.tokens == pytest.approx(replayed_tokens(same, 4))
        assert draft.cost == cost_of(Plan(6, count, {}, rounds=plan.rounds[:count]))


def test_judges_are_answers_and_texts_that_go_on(
    tiny_folder: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that chats, half are answers; it is the given text where the model does not fit."""
    folder = tiny_folder.parent / "chats"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    said: list[str] = []

    def judge(path: Path, has_tokenizer: bool) -> Judge:
        windows = tokens.repeat(20, 1)
        return draft_judge(open_model(path), windows, has_tokenizer, 0, COMPUTE, said.append, lambda _: None)

    assert len(judge(folder, True).tokens) == 64
    chats = sum(row[0] == 1 for row in judge(folder, True).tokens.tolist())
    assert chats == 32, "which begin with <|im_start|>"
    alone = judge(folder, False)
    assert torch.equal(alone.tokens[:, :32], tokens.repeat(16, 1)[:, :32])
    assert not said
    module = import_module("tinysleb.heal.draft_judge")
    monkeypatch.setattr(module, "sampling_bytes", lambda *_: 2**40)
    small = judge(folder, True)
    assert torch.equal(small.tokens, tokens.repeat(20, 1))
    assert "does not fit into memory" in said[0]


def test_a_draft_that_pays_is_written(idle_gguf: Path, tokens: Tensor, run: Run) -> None:  # noqa: ARG001
    result = run("draft", idle_gguf, "-o", "d.gguf", "--context", 1, *FAST, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["pays"], found["output"]) == (True, "d.gguf")
    assert found["acceptance"] > 0.9
    assert len(found["removed"]) == 4
    files = {name: read_gguf(Path(name)).tensors for name in (str(idle_gguf), "d.gguf")}
    read_for_a_token = [
        sum(
            tensor.nbytes for name, tensor in tensors.items() if not name.startswith(("token", "output_norm"))
        )
        for tensors in files.values()
    ]
    assert found["cost"] == pytest.approx(read_for_a_token[1] / read_for_a_token[0], rel=0.01)
    best = max(found["lengths"], key=lambda each: each["speedup"])
    assert (found["best_length"], found["speedup"]) == (best["length"], best["speedup"])
    assert [each["length"] for each in found["lengths"]] == list(range(1, 17))
    assert found["commands"][0] == (
        f"llama-server -m {idle_gguf} -md d.gguf --spec-type draft-simple --spec-draft-n-max {best['length']}"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["d.gguf", "d.plan.json", "tokens.npy"]
    text, timings = llama_cpp_speculative(idle_gguf, Path("d.gguf"), GREEDY_PROMPT, 48, 4)
    assert text == llama_cpp_greedy(idle_gguf, GREEDY_PROMPT, 48)
    assert timings["draft_n_accepted"] > 0.8 * timings["draft_n"] > 0
    again = run("draft", idle_gguf, "-o", "d.gguf", *FAST)
    assert again.exit_code == 1
    assert "d.gguf exists already" in again.stderr
    table = run("draft", idle_gguf, "-o", "d.gguf", *FAST, "--force", "--draft-max", 2).stdout.splitlines()
    assert table[0].startswith("d.gguf: 2 of 6 blocks, without ")
    assert [row.split()[0] for row in table[2:5]] == ["drafted", "1", "2"]
    assert "times as fast as" in table[5]
    assert table[6].startswith("llama-server -m ")
    assert table[7].startswith("llama-speculative-simple -m ")


def test_a_draft_that_does_not_pay_is_not_written(tiny_gguf: Path, tokens: Tensor, run: Run) -> None:  # noqa: ARG001
    """Unless it is forced, from the search that was kept."""
    words = ("draft", tiny_gguf, "-o", "d.gguf", "--remove", 1, *FAST)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "it does not pay" in result.stdout
    assert "one pays that costs less than" in result.stdout
    assert "llama-server" not in result.stdout
    assert not Path("d.gguf").exists()
    assert not Path("d.plan.json").exists()
    assert shlex.join(["tinysleb", *map(str, words), "--resume", "--force"]) in result.stdout
    forced = run(*words, "--resume", "--force")
    assert forced.exit_code == 0, forced.output
    assert "round 1" not in forced.stderr, "the search was kept"
    assert "it does not pay" in forced.stdout
    assert "nothing was written" not in forced.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["d.gguf", "d.plan.json", "tokens.npy"]
    assert llama_cpp_speculative(tiny_gguf, Path("d.gguf"), GREEDY_PROMPT, 16, 2)[0]


def test_hopeless_drafts_are_not_healed(tiny_gguf: Path, run: Run) -> None:
    Path("text.txt").write_text(TEXT * 200, encoding="utf-8")
    words = ("--text", "text.txt", "--window-length", 64, "--heal-tokens", 2048)
    result = run("draft", tiny_gguf, "-o", "d.gguf", *words)
    assert result.exit_code == 0, result.output
    assert "trying drafts, healed on few tokens" in result.stderr
    assert "healing on" not in result.stderr
    assert "it does not pay" in result.stdout
    assert [path.name for path in Path().iterdir() if path.name.startswith("d.gguf")] == [
        "d.gguf.unfinished.json"
    ]


def test_a_healed_draft_and_one_of_a_folder(idle_folder: Path, run: Run) -> None:
    Path("text.txt").write_text(TEXT * 200, encoding="utf-8")
    words = ("--text", "text.txt", "--window-length", 64, "--heal-tokens", 2048, "--self-text", 0)
    result = run("draft", idle_folder, "--remove", 3, "--cut", "block", "--heal", *words)
    assert result.exit_code == 0, result.output
    assert open_model(Path("idle-draft")).config.blocks == 3
    plan = json.loads(Path("idle-draft/plan.json").read_text())
    assert plan["healing"]["blocks"]
    assert plan["settings"]["score"] == "kl"
    assert f"tinysleb export {idle_folder} --gguf model.gguf" in result.stdout
    assert "tinysleb export idle-draft --gguf draft.gguf --draft model.gguf" in result.stdout


def test_options_that_do_not_go_together(tiny_gguf: Path, run: Run) -> None:
    for words, message in (
        (("--heal", "none", "--heal-tokens", 2048), "With --heal none nothing is healed"),
        (("--draft-max", 0), "0 is not in the range"),
        (("--prompt-ratio", 0.5), "0.5 is not in the range"),
        (("--cut", "attention"), "'attention' is not one of"),
    ):
        result = run("draft", tiny_gguf, *words)
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("draft", tiny_gguf, "--remove", 6)
    assert (result.exit_code, "6 blocks cannot be removed" in result.stderr) == (1, True)
