"""The real model, cut and exported, against llama.cpp and transformers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner

from exporting import TOKENS, Run
from reference import (
    GREEDY_PROMPT,
    llama_cpp_chat,
    llama_cpp_greedy,
    llama_cpp_logits,
    llama_cpp_texts,
    transformers_logits,
    transformers_model,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.heal.prompts import chat_questions
from tinysleb.model.forward import forward
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import default_text, windows


@pytest.fixture(scope="session")
def smollm2_f16(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a float16 folder made by transformers, exported by us."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("real") / "smollm2"
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float16)
    values = model.config.to_dict()
    values.pop("quantization_config")
    plain: Any = type(model)(type(model.config)(**values))
    plain = plain.to(torch.float16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).save_pretrained(folder)
    path = folder.with_suffix(".gguf")
    result = CliRunner().invoke(main, ["export", str(folder), "--gguf", str(path), "--type", "f16"])
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cut", "tolerance"),
    [
        ("f16", None, 5e-3),
        ("f16", "prune", 5e-3),
        ("f16", "heal", 5e-3),
        ("Q4_1", None, 5e-3),
        ("Q4_1", "prune", 1e-2),  # llama.cpp rounds activations to 8 bits here, to which cut models are
        ("Q4_1", "heal", 1e-2),  # sensitive
        ("Q4_1", "distill", 1e-2),
    ],
)
def test_smollm2_perplexity(
    kind: str, cut: str | None, tolerance: float, smollm2: Path, smollm2_f16: Path, run: Run
) -> None:
    """By llama.cpp's logits and by `tinysleb eval`, on the same four windows."""
    path = smollm2 if kind == "Q4_1" else smollm2_f16
    if cut is not None:
        Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3, 26, 14, 12]}')
        few = ("--heal-tokens", 4096, "--self-text", 0)
        command, *words = {
            "prune": ("prune",),
            "heal": ("heal", *few, "--heal", "solve"),
            "distill": ("heal", *few, "--distill-tokens", 4096),
        }[cut]
        assert run(command, path, "--plan", "plan-in.json", "-o", "cut.gguf", *words).exit_code == 0
        path = Path("cut.gguf")
    tokens = open_tokenizer(open_model(path)).encode(default_text())
    windows = np.array([tokens[i : i + 512] for i in range(0, 20000, 5000)], dtype=np.int32)
    np.save("tokens.npy", windows)
    ours = json.loads(run("eval", path, "--tokens", "tokens.npy", "--json").stdout)["perplexity"]
    logits = [torch.from_numpy(llama_cpp_logits(path, window.tolist())[:-1]) for window in windows]
    targets = torch.from_numpy(windows[:, 1:].astype(np.int64))
    theirs = torch.nn.functional.cross_entropy(torch.cat(logits), targets.flatten()).exp().item()
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_smollm2_greedy_text_in_f16(cut: bool, smollm2_f16: Path, run: Run) -> None:
    """The same 32 tokens of text from llama.cpp's server as from us."""
    path = smollm2_f16
    if cut:
        Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3, 26, 14, 12]}')
        assert run("prune", path, "--plan", "plan-in.json", "-o", "cut.gguf").exit_code == 0
        path = Path("cut.gguf").resolve()
    weights = open_model(path)
    tokenizer = open_tokenizer(weights)
    tokens = tokenizer.encode(GREEDY_PROMPT)
    for _ in range(32):
        tokens.append(int(forward(weights, torch.tensor([tokens]))[0, -1].argmax()))
    inner: Any = tokenizer
    inner.tokenizer.decoder = tokenizers.decoders.ByteLevel()
    ours = inner.tokenizer.decode(tokens[-32:], skip_special_tokens=False)
    assert ours == llama_cpp_greedy(path, GREEDY_PROMPT, 32)


@pytest.mark.slow
def test_smollm2_cut_answers_through_its_chat_template(smollm2: Path, run: Run) -> None:
    Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3]}')
    assert run("prune", smollm2, "--plan", "plan-in.json", "-o", "cut.gguf").exit_code == 0
    assert "Paris" in llama_cpp_chat(Path("cut.gguf"), "What is the capital of France?")


@pytest.mark.slow
def test_smollm2_with_its_draft_writes_the_same_and_accepts_what_was_predicted(
    smollm2: Path, run: Run
) -> None:
    """By llama.cpp's server, on prompts like those that it was judged by: it drafts one token at a time,
    where the rate is the acceptance itself, and four, where it is what the rounds are expected to give."""
    words = ("--remove", 3, "--cut", "block", "--heal", "none", "--force", "--json")
    result = run("draft", smollm2, "-o", "draft.gguf", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    weights = open_model(smollm2)
    questions = islice(chat_questions(weights, 1, lambda _line: None), 8)
    tokens = windows(weights, count=8, length=64, seed=1)
    prompts = [*questions, *tokens.tolist()]
    plain = [text for text, _ in llama_cpp_texts(smollm2, prompts, 96)]
    for drafted in (1, 4):
        texts = llama_cpp_texts(smollm2, prompts, 96, Path("draft.gguf"), drafted)
        assert [text for text, _ in texts] == plain
        proposed, accepted = (
            sum(timings.get(name, 0) for _, timings in texts) for name in ("draft_n", "draft_n_accepted")
        )
        expected = (found["lengths"][drafted - 1]["tokens"] - 1) / drafted
        assert accepted / proposed == pytest.approx(expected, abs=0.05)
    assert found["lengths"][0]["tokens"] - 1 == pytest.approx(found["acceptance"], abs=0.05)


@pytest.mark.slow
def test_smollm2_as_a_folder_is_what_transformers_reads_from_the_gguf(smollm2: Path, run: Run) -> None:
    import transformers

    assert run("export", smollm2, "--hf", "folder", "--shard-size", "200MB").exit_code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    assert torch.equal(
        transformers_logits(transformers_model(Path("folder")), TOKENS), transformers_logits(theirs, TOKENS)
    )
    text = default_text()[:20_000]
    tokens = transformers.AutoTokenizer.from_pretrained("folder")(text)["input_ids"]
    assert tokens == open_tokenizer(open_model(smollm2)).encode(text)
