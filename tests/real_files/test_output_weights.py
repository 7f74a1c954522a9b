"""Weights, vocabularies and files beside them: what is written loads in llama.cpp and in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_files.conditions import Condition, Outcome, check, command, edit_json, rows
from real_files.outputs import TOKENS, as_folder, as_gguf, exported, model, same_in_transformers, text, values
from safetensors.torch import load_file, save_file

from reference import (
    llama_cpp_logits,
    llama_cpp_tokens,
    make_model,
    transformers_logits,
    transformers_model,
)
from tinysleb.formats.gguf_file import read_gguf

LARGE = "model.layers.2.mlp.down_proj.weight"


def with_a_large_value(dtype: torch.dtype, value: float = 1e5) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        tensors[LARGE][3, 5] = value
        save_file(tensors, path, metadata={"format": "pt"})
        edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))

    return change


def not_exported(*said: str, type_: str = "f16") -> Outcome:
    """Refused with these words, and nothing is left behind."""

    def expect(folder: Path) -> None:
        out = folder.parent / "out.gguf"
        pre = () if (folder / "tokenizer.model").is_file() else ("--pre", "smollm")
        status, words = command("export", folder, "--gguf", out, "--type", type_, *pre)
        assert status == 1
        for word in said:
            assert word in words
        assert not list(folder.parent.glob("*out.gguf*"))

    return expect


def computes_in_llama_cpp(type_: str) -> Outcome:
    """What transformers computes, as far as the type allows."""

    def expect(folder: Path) -> None:
        out, _ = exported(folder, type_)
        expected = transformers_logits(transformers_model(folder), TOKENS)[0]
        found = torch.from_numpy(llama_cpp_logits(out, TOKENS[0].tolist()))
        assert (found - expected).abs().max() <= 0.05 * (expected.max() - expected.min())

    return expect


NAMED = ("tensor 'blk.2.ffn_down.weight' holds values that are too large for F16", "--type bf16")


@rows(
    Condition(
        "bfloat16 beyond float16, to f16", model(with_a_large_value(torch.bfloat16)),
        "the converter writes infinity, and llama.cpp computes NaN; refused, with the tensor's name",
        not_exported(*NAMED),
    ),
    Condition(
        "float32 beyond float16, to f16", model(with_a_large_value(torch.float32)),
        "the converter writes infinity; refused", not_exported(*NAMED),
    ),
    Condition(
        "rows that fall back to f16", model(with_a_large_value(torch.bfloat16), intermediate_size=80),
        "llama.cpp's quantiser falls back to f16, too, and writes infinity; refused",
        not_exported(*NAMED, type_="q8_0"),
    ),
    Condition(
        "a value whose block has no scale in float16", model(with_a_large_value(torch.float32, 1e9)),
        "llama.cpp's quantiser writes an infinite scale; refused", not_exported(
            "'blk.2.ffn_down.weight' holds values that are too large for Q8_0", "--type bf16", type_="q8_0"
        ),
    ),
    Condition(
        "bfloat16 beyond float16, to bf16", model(with_a_large_value(torch.bfloat16)),
        "llama.cpp computes in bfloat16 and float32", computes_in_llama_cpp("bf16"),
    ),
    Condition(
        "no dtype in the config", model(values("config.json", ("dtype", "torch_dtype"))),
        "both go by the weights", as_gguf(),
    ),
)  # fmt: skip
def test_values(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


def added_to_json(index: int, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        found["added_tokens"].append({"id": index, "content": content, "special": True} | flags)
        path.write_text(json.dumps(found))

    return change


def added_tokens(indices: dict[str, int]) -> Callable[[Path], None]:
    return text("added_tokens.json", json.dumps(indices))


def resized(count: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            more = torch.ones(max(0, count - 512), 64)
            tensors[name] = torch.cat([tensors[name], more])[:count].contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
        edit_json(folder / "config.json", vocab_size=count)

    return change


def same_tokens(*said: str, rows_: int = 512) -> Outcome:
    """llama.cpp finds the tokens that transformers finds, and there are as many as rows."""

    def expect(folder: Path) -> None:
        from transformers import AutoTokenizer

        as_gguf(*said)(folder)
        out = folder.parent / "out.gguf"
        assert len(read_gguf(out).values()["tokenizer.ggml.tokens"]) == rows_
        tokenizer = AutoTokenizer.from_pretrained(folder)
        words = "The quick brown fox end <s>"
        assert llama_cpp_tokens(out, words)[-9:] == tokenizer(words).input_ids[-9:]

    return expect


@rows(
    Condition(
        "added tokens beyond the last row, SentencePiece", model(added_tokens({"<x>": 512})),
        "transformers loads it; the converter: `ignore token 512: id is out of range`; left out, and said",
        same_tokens("the embedding has 512 rows; the tokens beyond are left out: '<x>'"),
    ),
    Condition(
        "added tokens beyond the last row, byte-level", model(added_to_json(512, "<x>"), "byte-level"),
        "transformers loads it; the converter ends with an assertion; as with SentencePiece",
        same_tokens("the tokens beyond are left out: '<x>'"),
    ),
    Condition(
        "fewer rows than pieces", model(resized(300)),
        "transformers loads it; the converter: `ignore tokens from 300`; left out, and said",
        as_gguf("the embedding has 300 rows; the tokens beyond are left out"),
    ),
    Condition(
        "fewer rows than tokens of a byte-level BPE", model(resized(300), "byte-level"),
        "the converter ends with an assertion; merges would name tokens that are not there: refused",
        not_exported("the embedding only 300 rows"),
    ),
    Condition(
        "a number of rows that no block divides", model(resized(521)),
        "both load it; rows without a token are named [PAD…], as the converter does", same_tokens(rows_=521),
    ),
    Condition(
        "a token added a second time, byte-level", model(added_to_json(450, "end"), "byte-level"),
        "transformers gives it the index that it has; llama.cpp ends the process if it is there twice",
        same_tokens(),
    ),
    Condition(
        "a token added a second time, SentencePiece", model(added_tokens({"<s>": 450})),
        "transformers keeps the first; of the converter's file llama.cpp ends the process (its issue 5669)",
        same_tokens(),
    ),
    Condition(
        "all special tokens in added_tokens.json, with their own indices",
        model(added_tokens({"<unk>": 0, "<s>": 1, "</s>": 2, "<x>": 400})),
        "older converters wanted new ones only (llama.cpp issue 3583, OpenOrca); all agree on the indices",
        same_tokens(),
    ),
)  # fmt: skip
def test_vocabularies(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


def drops(name: str, key: str, note: str) -> Outcome:
    """The folder's file has no such key, says so, and loads in transformers: model and tokenizer."""

    def expect(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        out = folder.parent / "out"
        status, said = command("export", folder, "--hf", out)
        assert status == 0, said
        assert note in said
        assert key not in json.loads((out / name).read_text())
        AutoModelForCausalLM.from_pretrained(out)
        assert AutoTokenizer.from_pretrained(out)("The quick").input_ids

    return expect


def files_copied(*names: str) -> Outcome:
    """Byte by byte, and the template is in the GGUF."""

    def expect(folder: Path) -> None:
        as_gguf(tokenizer__chat_template="{{ messages }}")(folder)
        for name in names:
            assert (folder.parent / "out" / name).read_bytes() == (folder / name).read_bytes()

    return expect


def with_special_tokens_map(folder: Path) -> None:
    values("special_tokens_map.json", bos_token={"content": "<s>", "lstrip": False})(folder)
    text("chat_template.jinja", TEMPLATE)(folder)


def read_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def writable_output(folder: Path) -> None:
    same_in_transformers(folder)
    for path in (folder.parent / "out").iterdir():
        path.write_bytes(b"")


def no_such_folder(folder: Path) -> None:
    """Said before a search."""
    np.save(folder.parent / "windows.npy", TOKENS.numpy().astype(np.int32))
    tokens = ("--tokens", folder.parent / "windows.npy", "--heal", "none")
    status, said = command("prune", folder, "--remove", 1, *tokens, "-o", folder.parent / "no" / "out")
    assert status == 1
    assert "does not exist" in said
    assert "round" not in said


CODE = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
TOKENIZER_CODE = {"AutoTokenizer": ["tokenization_x.X", None]}
TEMPLATE = "{{ messages }}"


@rows(
    Condition(
        "`auto_map` in the config", model(values("config.json", auto_map=CODE)),
        "transformers asks for trust, or for the file that is not copied; mergekit's outputs failed so",
        drops("config.json", "auto_map", "left out, since the code that it names is not copied: `auto_map`"),
    ),
    Condition(
        "`auto_map` for the tokenizer",
        model(values("tokenizer_config.json", auto_map=TOKENIZER_CODE, tokenizer_class="XTokenizer")),
        "transformers does not load the tokenizer without its code",
        drops("tokenizer_config.json", "auto_map", "`auto_map` of tokenizer_config.json"),
    ),
    Condition(
        "`torch_dtype` auto", model(values("config.json", ("dtype",), torch_dtype="auto")),
        "transformers 5: `module 'torch' has no attribute 'auto'`; the converter takes it",
        drops("config.json", "torch_dtype", ""),
    ),
    Condition(
        "chat_template.json", model(text("chat_template.json", json.dumps({"chat_template": TEMPLATE}))),
        "the converter reads it where tokenizer_config.json has no template",
        files_copied("chat_template.json"),
    ),
    Condition(
        "chat_template.jinja", model(text("chat_template.jinja", TEMPLATE)),
        "both read it", files_copied("chat_template.jinja"),
    ),
    Condition(
        "special_tokens_map.json with objects", model(with_special_tokens_map),
        "transformers reads it, the converter does not", files_copied("special_tokens_map.json"),
    ),
    Condition(
        "a name or path that is a number", model(values("config.json", _name_or_path=5)),
        "transformers loads it; the converter: `'int' object has no attribute 'count'`", as_gguf(),
    ),
    Condition(
        "read-only files", model(read_only), "both read them; the output can be written to", writable_output
    ),
    Condition("an output in no folder", model(), "nobody makes the folder; said at once", no_such_folder),
)  # fmt: skip
def test_files(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("Olmo2ForCausalLM", {"tie_word_embeddings": True}, "it has no tensor 'output.weight'"),
        ("Qwen2ForCausalLM", {"head_dim": 32}, "tensor 'blk.0.attn_q.weight' has the shape [128, 64]"),
    ],
)
def test_what_only_transformers_loads_is_written_as_a_folder(
    family: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """The converter writes a GGUF that llama.cpp's loader refuses: it asks for OLMo 2's output matrix, and
    for square projections in Qwen 2."""
    folder = make_model(family, tmp_path / "m", **changes)
    not_exported(f"llama.cpp would not load a GGUF of this model: {said}")(folder)
    assert as_folder(folder)


def healed_into_f16(folder: Path) -> None:
    """Refused when the block is reached, with the tensor's name, and nothing is left behind."""
    path, _ = exported(folder, "bf16")
    (folder.parent / "plan.json").write_text(json.dumps({"blocks": 6, "removed": [4]}))
    np.save(folder.parent / "windows.npy", TOKENS.repeat(4, 1).numpy().astype(np.int32))
    to_heal = ("--heal", "solve", "--tokens", folder.parent / "windows.npy")
    words = ("--plan", folder.parent / "plan.json", "--type", "f16", "-o", folder.parent / "healed.gguf")
    status, said = command("prune", path, *words, *to_heal)
    assert status == 1
    assert "model.layers.2.mlp.down_proj.weight' holds values that are too large for F16" in said
    assert "--type bf16" in said
    assert not list(folder.parent.glob("*healed*"))


@rows(
    Condition(
        "bfloat16 beyond float16, healed into f16", model(with_a_large_value(torch.bfloat16)),
        "llama.cpp's quantiser writes infinity; refused", healed_into_f16,
    ),
)  # fmt: skip
def test_healed_values(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
