"""Small valid files of every kind that tinysleb reads, made once; each case changes one of them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from exporting import random_means, write_binary_form, write_gguf_form
from reference import CORPUS, FAMILIES, LONG_ROPE, make_llama, make_model, train_byte_level
from tinysleb.cli import main
from tinysleb.export import gguf_check
from tinysleb.formats.gguf_file import read_gguf

SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
}
WIDE = {"hidden_size": 256, "intermediate_size": 256}
"""The least that K-quants hold."""
FRONT_MATTER = "---\nlicense: mit\nbase_model: x/y\ntags: [a, b]\nlanguage:\n- en\n---\n# Card\n"


def run(*words: object) -> str:
    """What a command prints. It must succeed."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def no_llama_cpp() -> None:
    """It would be a process of its own for each GGUF that is written."""
    vars(gguf_check)["is_installed"] = lambda: False


def make_samples(folder: Path) -> Path:
    """Models, and what goes with them, in `folder`."""
    make_llama(folder / "bytes", **SMALL)
    make_llama(folder / "pieces", tokenizer="sentencepiece", **SMALL, **FAMILIES["llama llama3"][1])
    phi3 = SMALL | {"hidden_size": 64, "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 256}
    make_model("Phi3ForCausalLM", folder / "phi3", **phi3)
    make_model("Qwen2ForCausalLM", folder / "qwen2", **SMALL, **FAMILIES["qwen2 yarn"][1])
    for name in ("bytes", "pieces"):
        (folder / name / "README.md").write_text(FRONT_MATTER)
        (folder / name / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    split_vocabulary(folder / "bytes", folder / "gpt2")
    run("export", folder / "bytes", "--hf", folder / "shards", "--shard-size", "40KB")
    for name in ("bytes", "pieces", "phi3", "qwen2"):
        run("export", folder / name, "--gguf", folder / f"{name}.gguf", "--pre", "smollm")
    wide = make_llama(folder / "wide", **SMALL | WIDE)
    run("export", wide, "--gguf", folder / "k.gguf", "--type", "q4_k_m", "--pre", "smollm")
    shutil.rmtree(wide)
    run("prune", folder / "bytes.gguf", "-o", folder / "deci.gguf", "--blocks", "A1,F2")
    tokens = np.random.default_rng(0).integers(3, 370, (6, 24)).astype(np.int32)
    np.save(folder / "tokens.npy", tokens)
    searched = ("--remove", 1, "--no-heal", "--tokens", folder / "tokens.npy", "--exact")
    run("prune", folder / "bytes.gguf", "-o", folder / "cut.gguf", *searched)
    run("prune", folder / "bytes", "-o", folder / "cut", *searched)
    (folder / "plan.json").write_bytes((folder / "cut.plan.json").read_bytes())
    base = ("--kl-divergence-base", folder / "base.kld", "--tokens", folder / "tokens.npy")
    compared = run("compare", folder / "bytes.gguf", folder / "cut.gguf", *base, "--json")
    (folder / "compared.json").write_text(compared)
    means = random_means(read_gguf(folder / "bytes.gguf"))
    write_gguf_form(folder / "imatrix.gguf", means)
    write_binary_form(folder / "imatrix.dat", means)
    write_texts(folder)
    return folder


def split_vocabulary(source: Path, folder: Path) -> None:
    """The same model with `vocab.json` and `merges.txt`, from before there was a `tokenizer.json`."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    train_byte_level(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


def write_texts(folder: Path) -> None:
    """Texts, chats and questions."""
    (folder / "text.txt").write_text("".join(CORPUS) * 12)
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello " * 60}]}
    (folder / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * 4))
    (folder / "hellaswag.txt").write_text("He runs\n1\nfast\nhome\nup\nx\n" * 2)
    (folder / "winogrande.csv").write_text("0,the _ runs,cat,dog,1\n1,a _ sits,bird,man,2\n")
    question = {"context": "def f", "choices": ["(x)", "[y]"], "answer": 0}
    (folder / "choices.jsonl").write_text("\n".join([json.dumps(question)] * 2))
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"one", b"two"))
    body = struct.pack("<I", 3) + b"So " + (struct.pack("<I", 2) + texts + struct.pack("<2i", 1, 0)) * 2
    (folder / "choices.bin").write_bytes(struct.pack("<2I", 1, 0) + body)
