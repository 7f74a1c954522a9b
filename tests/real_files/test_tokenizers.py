"""Tokenizers as people have them, beside weights and in GGUF files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType
from real_files.conditions import Condition, Outcome, check, command, edit_json, rows
from sentencepiece import SentencePieceProcessor

from reference import TEXT, llama_cpp_tokens, make_llama, make_model, with_metadata
from tinysleb.checkpoint.open_model import open_model
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.text.tokenizer import open_tokenizer

Make = Callable[[Path], Path]
SPECIALS = "<|im_start|>user\nhi <|im_end|> there<|endoftext|>"
BOTH = "transformers and llama.cpp's converter"


def byte_level(folder: Path) -> Path:
    return make_llama(folder / "model", num_hidden_layers=3)


def pieces(folder: Path) -> Path:
    return make_llama(folder / "model", num_hidden_layers=3, tokenizer="sentencepiece")


def with_config(make: Make = byte_level, drop: tuple[str, ...] = (), **values: Any) -> Make:
    """A folder whose tokenizer_config.json has these values."""

    def edited(folder: Path) -> Path:
        path = make(folder)
        edit_json(path / "tokenizer_config.json", drop, **values)
        return path

    return edited


def with_json(change: Callable[[dict[str, Any]], None]) -> Make:
    """A folder whose tokenizer.json was changed."""

    def edited(folder: Path) -> Path:
        path = byte_level(folder)
        values = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        change(values)
        (path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
        return path

    return edited


def with_files(make: Make = byte_level, **files: bytes) -> Make:
    """A folder with more files, `__` in whose names stands for a dot."""

    def made(folder: Path) -> Path:
        path = make(folder)
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)
        return path

    return made


def of_family(family: str) -> Make:
    return lambda folder: make_model(family, folder / "model", num_hidden_layers=3)


def two_files_of(family: str) -> Make:
    return lambda folder: vocabulary_and_merges(folder, of_family(family))


def vocabulary_and_merges(folder: Path, make: Make = byte_level) -> Path:
    """GPT-2's two files in place of tokenizer.json."""
    path = make(folder)
    model = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (path / "tokenizer.json").unlink()
    return path


POINTER = b"version https://git-lfs.github.com/spec/v1\nsize 9\n"
TIKTOKEN = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
"""A vocabulary as Meta publishes Llama 3's under the name tokenizer.model."""


def gguf(make: Make = byte_level, drop: tuple[str, ...] = (), **values: GgufValue) -> Make:
    """A GGUF with keys of `tokenizer.ggml.` changed or dropped."""

    def made(folder: Path) -> Path:
        path, source = folder / "m.gguf", make(folder)
        words = () if (source / "tokenizer.model").is_file() else ("--pre", "smollm")
        status, said = command("export", source, "--gguf", folder / "plain.gguf", *words)
        assert status == 0, said
        changes: dict[str, GgufValue | None] = {f"tokenizer.ggml.{key}": None for key in drop}
        changes |= {f"tokenizer.ggml.{key}": value for key, value in values.items()}
        return with_metadata(folder / "plain.gguf", path, changes)

    return made


def tokens(path: Path, text: str) -> list[int]:
    return open_tokenizer(open_model(path)).encode(text)


def as_transformers(*texts: str) -> Outcome:
    """The tokens that AutoTokenizer gives, of these texts and of an awkward one."""

    def expect(path: Path) -> None:
        from transformers import AutoTokenizer

        peer = AutoTokenizer.from_pretrained(path)
        for text in (TEXT, TEXT + SPECIALS, SPECIALS, *texts):
            assert tokens(path, text) == peer.encode(text), text

    return expect


def as_llama_cpp(*texts: str) -> Outcome:
    """The tokens that llama.cpp gives, of these texts and of an awkward one."""

    def expect(path: Path) -> None:
        for text in (TEXT, TEXT + SPECIALS, SPECIALS, *texts):
            assert tokens(path, text) == llama_cpp_tokens(path, text), text

    return expect


def whole(number: int) -> GgufValue:
    return GgufValue(number, GGUFValueType.UINT32)


def switch(value: bool) -> GgufValue:
    return GgufValue(value, GGUFValueType.BOOL)


def template(**around: tuple[str, int]) -> Callable[[dict[str, Any]], None]:
    """A post-processor that puts tokens before and behind a text, as Llama 3's tokenizer.json has it."""

    def change(values: dict[str, Any]) -> None:
        tokens = {place: {"SpecialToken": {"id": text, "type_id": 0}} for place, (text, _) in around.items()}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        single = [item for item in (tokens.get("before"), text, tokens.get("behind")) if item]
        special = {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in around.values()}
        values["post_processor"] = {
            "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special,
        }  # fmt: skip

    return change


def cut_and_padded(values: dict[str, Any]) -> None:
    values["truncation"] = {
        "direction": "Right", "max_length": 96, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    values["padding"] = {
        "strategy": {"Fixed": 4096}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip


def merges_as_pairs(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    values["model"]["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def merges_as_texts(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    values["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def no_merges(values: dict[str, Any]) -> None:
    values["model"]["merges"] = []


def added(text: str, index: int, **how: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": index, "content": text, **plain, **how}


def add(*items: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["added_tokens"].extend(items)


def without_truncation(path: Path) -> None:
    """transformers encodes the whole text too, if it is asked not to cut or pad it."""
    from transformers import AutoTokenizer

    text = TEXT * 20
    peer = AutoTokenizer.from_pretrained(path)
    expected = peer(text, truncation=False, padding=False)["input_ids"]
    assert len(expected) > 96
    assert tokens(path, text) == expected


def with_pre(path: Path) -> None:
    """--pre lets prune, heal and eval read the file, and what they write says it."""
    text, plan = path.with_name("t.txt"), path.with_name("short.plan.json")
    text.write_text(TEXT * 40, encoding="utf-8")
    windows = ("--text", text, "--window-length", 32)
    status, said = command("eval", path, *windows)
    assert status == 1
    for word in ("m.gguf: it has no `tokenizer.ggml.pre`", "--pre", "smollm"):
        assert word in said
    assert "perplexity" in command("eval", path, *windows, "--pre", "smollm")[1]
    short = path.with_name("short.gguf")
    prune = ("prune", path, "-o", short, "--remove", 1, "--heal", "none", *windows)
    assert command(*prune)[0] == 1
    assert command(*prune, "--pre", "no-such-name")[0] == 1
    status, said = command(*prune, "--pre", "smollm")
    assert status == 0, said
    assert read_gguf(short).values()["tokenizer.ggml.pre"] == "smollm"
    assert tokens(short, TEXT) == llama_cpp_tokens(short, TEXT)
    healed = path.with_name("healed.gguf")
    heal = ("heal", path, "--plan", plan, "-o", healed, "--heal", "solve", "--heal-tokens", 2048)
    status, said = command(*heal, "--text", text, "--pre", "smollm", "--self-text", 0)
    assert status == 0, said
    assert read_gguf(healed).values()["tokenizer.ggml.pre"] == "smollm"


def chat_without_rows(folder: Path) -> Path:
    """The embedding has a row for each of 395 tokens; then somebody added two for chats."""
    path = make_llama(folder / "model", num_hidden_layers=4, vocab_size=395)
    values = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    values["added_tokens"] += [added("<|user|>", 395, special=True), added("<|model|>", 396, special=True)]
    (path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    chat = "{% for m in messages %}<|user|>{{ m.content }}<|model|>{% endfor %}"
    edit_json(path / "tokenizer_config.json", chat_template=chat)
    return path


def without_chats(path: Path) -> None:
    text = path.with_name("t.txt")
    text.write_text(TEXT * 60, encoding="utf-8")
    words = ("--text", text, "--window-length", 32, "--heal", "solve", "--heal-tokens", 2048)
    status, said = command("prune", path, "-o", path.with_name("out"), "--remove", 1, *words)
    assert status == 0, said
    assert "no chats are sampled from the model: its chat template uses token 396" in said
    assert "its vocabulary has 395 rows" in said


def refused_for_text(*words: str, by: tuple[str, ...] = ()) -> Outcome:
    """Refused by prune, heal and eval, before any work is done."""

    def expect(path: Path) -> None:
        text = path.with_name("t.txt")
        text.write_text(TEXT * 40, encoding="utf-8")
        windows = ("--text", text, "--window-length", 32)
        for command_line in (("eval", path), ("prune", path, "-o", path.with_name("out"), "--remove", 1)):
            status, said = command(*command_line, *windows, *by)
            assert status == 1, said
            assert said.count("Error: ") == 1, said
            assert "round 1" not in said, said
            for word in words:
                assert word in said, said

    return expect


EXTRA = {"content": "<extra>", "special": False, "lstrip": False, "rstrip": False, "normalized": False}
AND_EXTRA = SPECIALS + " a<extra>b <extra> c"


@rows(
    Condition(
        "a tiktoken tokenizer.model beside tokenizer.json",
        with_files(tokenizer__model=TIKTOKEN),
        f"{BOTH} take tokenizer.json; sentencepiece cannot parse the other file",
        as_transformers(),
    ),
    Condition(
        "a tiktoken tokenizer.model alone",
        lambda folder: _without(with_files(tokenizer__model=TIKTOKEN)(folder), "tokenizer.json"),
        "transformers needs the package tiktoken and guesses how text is split; the converter fails",
        refused_for_text("tokenizer.model is a vocabulary of tiktoken", "tokenizer.json", "--tokens"),
    ),
    Condition(
        "vocab.json and merges.txt",
        vocabulary_and_merges,
        f"{BOTH} load them as GPT-2's, by the class that is named",
        as_transformers(),
    ),
    Condition(
        "vocab.json and merges.txt of the slow class",
        with_config(vocabulary_and_merges, tokenizer_class="GPT2Tokenizer"),
        "transformers loads them",
        as_transformers(),
    ),
    Condition(
        "vocab.json and merges.txt of Qwen 2, by its class",
        with_config(vocabulary_and_merges, tokenizer_class="Qwen2Tokenizer"),
        "transformers normalises to NFC, and splits as Qwen does",
        as_transformers("e\u0301 a\u0308 12345 \n\n x"),
    ),
    Condition(
        "vocab.json and merges.txt of Qwen 3, by the model",
        with_config(two_files_of("Qwen3ForCausalLM"), drop=("tokenizer_class",)),
        "transformers chooses the class by the model type",
        as_transformers("e\u0301 a\u0308 12345 \n\n x"),
    ),
    Condition(
        "vocab.json and merges.txt of Qwen 2 that name another class",
        two_files_of("Qwen2ForCausalLM"),
        "transformers knows that the hub's files are wrong, and takes Qwen's class",
        as_transformers("e\u0301 a\u0308 12345 \n\n x"),
    ),
    Condition(
        "vocab.json and merges.txt that name no class",
        with_config(vocabulary_and_merges, drop=("tokenizer_class",)),
        "transformers: Couldn't instantiate the backend tokenizer; a guess would go unnoticed",
        refused_for_text("no tokenizer.json", "tokenizer_class", "GPT2Tokenizer"),
    ),
    Condition(
        "vocab.json and merges.txt with added_tokens.json",
        with_files(vocabulary_and_merges, added_tokens__json=b'{"<extra>": 395}'),
        "transformers adds its tokens",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "vocab.json and merges.txt with added_tokens_decoder",
        with_config(vocabulary_and_merges, added_tokens_decoder={"395": EXTRA}),
        "transformers adds its tokens",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "vocab.json and merges.txt with gaps in added_tokens_decoder",
        with_config(vocabulary_and_merges, added_tokens_decoder={"450": EXTRA}),
        "transformers 5 and so the converter give the token the next free index, whatever the file says",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "vocab.json and merges.txt with special_tokens_map.json",
        with_files(
            vocabulary_and_merges,
            special_tokens_map__json=b'{"pad_token": "<extra>", "mask_token": {"content": "a<"}}',
        ),
        "transformers adds tokens with a role that the vocabulary lacks",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "vocab.json and merges.txt with more special tokens",
        with_config(vocabulary_and_merges, additional_special_tokens=["<extra>"]),
        "transformers adds them after those with roles",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "vocab.json and merges.txt with a BOS token before a text",
        with_config(vocabulary_and_merges, add_bos_token=True),
        "transformers adds it where there is no tokenizer.json to say otherwise",
        as_transformers(),
    ),
    Condition(
        "vocab.json and merges.txt with an EOS token behind a text",
        with_config(vocabulary_and_merges, add_eos_token=True),
        "transformers adds it",
        as_transformers(),
    ),
    Condition(
        "vocab.json and merges.txt with a space before a text",
        with_config(vocabulary_and_merges, add_prefix_space=True),
        "transformers adds it, unless there is one",
        as_transformers(" a", "a"),
    ),
    Condition(
        "vocab.json and merges.txt whose tokens have no role",
        with_config(vocabulary_and_merges, bos_token=None, unk_token=None, eos_token=None),
        "transformers adds none, and no <|endoftext|>",
        as_transformers(),
    ),
    Condition(
        "merges.txt with empty lines and CRLF",
        lambda folder: _with_lines(vocabulary_and_merges(folder)),
        "transformers fails on them, in the tokenizers package: Merges text file invalid at line 2",
        refused_for_text("vocab.json and merges.txt are not a vocabulary and its merges"),
    ),
    Condition(
        "vocab.json with an index of 2^31",
        lambda folder: _with_index(vocabulary_and_merges(folder), 2**31),
        "the tokenizers package allocates all that are below, and ends the process where there is no memory",
        refused_for_text("vocab.json and merges.txt are not a vocabulary and its merges"),
    ),
    Condition(
        "truncation and padding in tokenizer.json",
        with_json(cut_and_padded),
        "transformers takes both for defaults of batches; a text for windows is neither cut nor padded",
        without_truncation,
    ),
    Condition(
        "add_bos_token beside a tokenizer.json that adds none",
        with_config(add_bos_token=True),
        "transformers 5 goes by the post-processor of tokenizer.json alone",
        as_transformers(),
    ),
    Condition(
        "a tokenizer.json that adds BOS, and add_bos_token false",
        lambda folder: with_config(with_json(template(before=("<|im_start|>", 1))), add_bos_token=False)(
            folder
        ),
        "transformers 5 goes by the post-processor of tokenizer.json alone",
        as_transformers(),
    ),
    Condition(
        "a tokenizer.json that adds BOS and EOS",
        with_json(template(before=("<|im_start|>", 1), behind=("<|im_end|>", 2))),
        "transformers adds both",
        as_transformers(),
    ),
    Condition(
        "merges as pairs",
        with_json(merges_as_pairs),
        "both load what transformers 4.45 and later write",
        as_transformers(),
    ),
    Condition(
        "merges as texts", with_json(merges_as_texts), "both load what older ones wrote", as_transformers()
    ),
    Condition(
        "a tokenizer.json without merges",
        with_json(no_merges),
        "transformers gives a token for every byte; there is no word of more in the file",
        as_transformers(),
    ),
    Condition(
        "added tokens that contain one another",
        with_json(add(added("<ex", 395), added("<extra>", 396), added("extra>b", 397))),
        "both take the longest of those that begin first",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "added tokens that take the whitespace beside them",
        with_json(add(added("<extra>", 395, lstrip=True, rstrip=True))),
        "transformers does as the file says; llama.cpp for a few models by name",
        as_transformers(AND_EXTRA),
    ),
    Condition(
        "added tokens that must be words",
        with_json(add(added("extra", 395, single_word=True))),
        "transformers does as the file says",
        as_transformers("an extra word, extraordinary"),
    ),
    Condition(
        "a tokenizer class that nobody knows",
        with_config(tokenizer_class="MyOwnTokenizer"),
        "transformers falls back on tokenizer.json",
        as_transformers(),
    ),
    Condition(
        "LlamaTokenizerFast named beside a byte-level tokenizer.json",
        with_config(tokenizer_class="LlamaTokenizerFast"),
        "transformers sees that it is byte-level, and goes by the file",
        as_transformers(),
    ),
    Condition(
        "no tokenizer_config.json",
        lambda folder: _without(byte_level(folder), "tokenizer_config.json"),
        "both load tokenizer.json alone",
        as_transformers(),
    ),
    Condition(
        "special tokens as objects",
        with_config(
            bos_token={"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False, "special": True},
        ),
        "transformers reads what it wrote before 4.34",
        as_transformers(),
    ),
    Condition(
        "special tokens that are null",
        with_config(bos_token=None, eos_token=None, pad_token=None),
        "both go on without",
        as_transformers(),
    ),
    Condition(
        "tokenizer_config.json with a byte order mark",
        lambda folder: _with_mark(byte_level(folder) / "tokenizer_config.json").parent,
        "transformers fails, as Python's json does on such a text; what is meant is plain, so we read it",
        lambda path: _same_without_mark(path),
    ),
    Condition(
        "added tokens behind the last row, and a chat template that uses them",
        chat_without_rows,
        "transformers has an IndexError when it embeds them; such prompts are left out, and it is said",
        without_chats,
    ),
    Condition(
        "more rows than tokens",
        lambda folder: make_llama(folder / "model", num_hidden_layers=3, vocab_size=448),
        "both load it; padding the rows to a multiple of 64 is common",
        as_transformers(),
    ),
    Condition(
        "SentencePiece with legacy false",
        with_config(pieces, legacy=False),
        "the same for text without special tokens",
        lambda path: _plain_as_transformers(path),
    ),
    Condition(
        "SentencePiece without BOS",
        with_config(pieces, add_bos_token=False),
        "both put nothing before a text",
        lambda path: _plain_as_transformers(path),
    ),
    Condition(
        "SentencePiece with EOS",
        with_config(pieces, add_eos_token=True),
        "both put it behind a text",
        lambda path: _plain_as_transformers(path),
    ),
    Condition(
        "SentencePiece with added tokens that take the whitespace beside them",
        with_config(
            pieces,
            added_tokens_decoder={
                "380": EXTRA | {"content": "<|user|>", "special": True, "rstrip": True},
                "381": EXTRA | {"content": "<mask>", "lstrip": True},
            },
        ),
        "Phi 3 has it; transformers does as the file says, llama.cpp for Phi 3 by its name",
        lambda path: _plain_as_transformers(path, "a<|user|> \n\n", "a \n <mask>", "a<|user|>  <mask>"),
    ),
    Condition(
        "SentencePiece with added_tokens.json that repeats tokens of the vocabulary",
        with_files(pieces, added_tokens__json=b'{"</s>": 2, "<s>": 1, "<unk>": 0, "<extra>": 380}'),
        "Mistral-7B-OpenOrca has it; transformers loads it, the converter passes over those below",
        lambda path: _plain_as_transformers(path),
    ),
    Condition(
        "a Git LFS pointer in place of merges.txt",
        with_files(
            vocabulary_and_merges, merges__txt=b"version https://git-lfs.github.com/spec/v1\nsize 9\n"
        ),
        "the tokenizers package: Merges text file invalid at line 1",
        refused_for_text("merges.txt is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "SentencePiece and a text that begins with spaces",
        pieces,
        "sentencepiece and llama.cpp put one more before them, transformers 5 does not; we follow the former",
        lambda path: _as_sentencepiece(path, "  two"),
    ),
    Condition(
        "SentencePiece with added_tokens.json",
        with_files(pieces, added_tokens__json=b'{"<extra>": 380}'),
        "transformers adds its tokens",
        lambda path: _plain_as_transformers(path),
    ),
)
def test_tokenizers_in_folders(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


@rows(
    Condition(
        "a byte-level GGUF without merges",
        gguf(drop=("merges",)),
        "llama.cpp: cannot find tokenizer merges in model file",
        refused_for_text("m.gguf", "it has no `tokenizer.ggml.merges`"),
    ),
    Condition(
        "a GGUF without tokenizer.ggml.pre",
        gguf(drop=("pre",)),
        "llama.cpp warns of degraded quality, and takes a default that is no model's; we ask for it",
        with_pre,
    ),
    Condition(
        "a GGUF whose tokenizer.ggml.pre is default",
        gguf(pre=GgufValue("default", GGUFValueType.STRING)),
        "llama.cpp takes a way of splitting that is no model's",
        refused_for_text("`tokenizer.ggml.pre` is 'default'", "--pre", "smollm"),
    ),
    Condition(
        "a GGUF in whose place --pre says another",
        gguf(pre=GgufValue("qwen2", GGUFValueType.STRING)),
        "llama.cpp has --override-kv for it",
        lambda path: _overridden(path),
    ),
    Condition(
        "--pre for a GGUF with a SentencePiece vocabulary",
        gguf(pieces),
        "llama.cpp reads the key for vocabularies of byte-level BPE alone",
        refused_for_text("`tokenizer.ggml.model` is 'llama'", "leave --pre out", by=("--pre", "smollm")),
    ),
    Condition(
        "--pre for a folder",
        byte_level,
        "the converter recognises it by what the tokenizer does",
        refused_for_text("is not a GGUF, so that --pre cannot be used", by=("--pre", "smollm")),
    ),
    Condition(
        "a GGUF without token types",
        gguf(drop=("token_type",)),
        "llama.cpp takes all tokens for plain ones, but for ends of turns that it knows by their text",
        lambda path: _plain_as_llama_cpp(path),
    ),
    Condition(
        "a SentencePiece GGUF without scores",
        gguf(pieces, drop=("scores",)),
        "llama.cpp gives all pieces the score 0, and merges from the left; no such file is sound",
        refused_for_text("tokens but 0 token scores"),
    ),
    Condition(
        "a GGUF that adds BOS",
        gguf(add_bos_token=switch(True)),
        "llama.cpp adds it",
        as_llama_cpp(),
    ),
    Condition(
        "a GGUF that adds EOS",
        gguf(add_eos_token=switch(True)),
        "llama.cpp adds it",
        as_llama_cpp(),
    ),
    Condition(
        "a SentencePiece GGUF that adds no BOS",
        gguf(pieces, add_bos_token=switch(False)),
        "llama.cpp adds none",
        as_llama_cpp(),
    ),
    Condition(
        "a SentencePiece GGUF without a space before a text",
        gguf(pieces, add_space_prefix=switch(False)),
        "llama.cpp adds none",
        as_llama_cpp(),
    ),
    Condition(
        "a GGUF without the index of BOS",
        gguf(pieces, drop=("bos_token_id",)),
        "llama.cpp takes the index 1 for SentencePiece",
        as_llama_cpp(),
    ),
    Condition(
        "an EOS token outside the vocabulary",
        gguf(eos_token_id=whole(100_000)),
        "llama.cpp: bad special token, using the default",
        as_llama_cpp(),
    ),
    Condition(
        "a BOS token outside the vocabulary",
        gguf(pieces, bos_token_id=whole(100_000)),
        "llama.cpp: bad special token, using the default; that would be another one than the file means",
        refused_for_text("`tokenizer.ggml.bos_token_id` is 100000", "from 0 to"),
    ),
    Condition(
        "a padding token of -1",
        gguf(padding_token_id=GgufValue(2**32 - 1, GGUFValueType.UINT32)),
        "llama.cpp: bad special token, using the default",
        as_llama_cpp(),
    ),
)
def test_tokenizers_in_gguf_files(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


def _without(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def _with_mark(path: Path) -> Path:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


def _with_index(path: Path, index: int) -> Path:
    vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<far>"] = index
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return path


def _with_lines(path: Path) -> Path:
    lines = (path / "merges.txt").read_text(encoding="utf-8").splitlines()
    (path / "merges.txt").write_bytes("\r\n\r\n".join(lines).encode())
    return path


def _same_without_mark(path: Path) -> None:
    found = tokens(path, TEXT)
    config = path / "tokenizer_config.json"
    config.write_bytes(config.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    as_transformers()(path)
    assert found == tokens(path, TEXT)


def _plain_as_transformers(path: Path, *texts: str) -> None:
    """After special tokens we follow llama.cpp, which puts a space before what comes next."""
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(path)
    for text in (TEXT, "a", "the end<extra>", *texts):
        assert tokens(path, text) == peer.encode(text), text


def _overridden(path: Path) -> None:
    (path.with_name("t.txt")).write_text(TEXT * 40, encoding="utf-8")
    words = ("--text", path.with_name("t.txt"), "--window-length", 32, "--json")
    with_option = command("eval", path, *words, "--pre", "smollm")
    plain = command("eval", path.with_name("plain.gguf"), *words)
    assert with_option[0] == plain[0] == 0
    assert json.loads(with_option[1])["perplexity"] == json.loads(plain[1])["perplexity"]


def _plain_as_llama_cpp(path: Path) -> None:
    assert tokens(path, TEXT) == llama_cpp_tokens(path, TEXT)


def _as_sentencepiece(path: Path, text: str) -> None:
    processor = SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    exported = path.with_name("m.gguf")
    assert command("export", path, "--gguf", exported)[0] == 0
    assert tokens(path, text) == [processor.bos_id(), *processor.encode(text)]
    assert tokens(path, text) == llama_cpp_tokens(exported, text)


def exported_as_llama_cpp_reads_it(*words: str) -> Outcome:
    """The GGUF has, in llama.cpp, the tokens that transformers gives for the folder."""

    def expect(path: Path) -> None:
        from transformers import AutoTokenizer

        out = path.with_name("m.gguf")
        status, said = command("export", path, "--gguf", out, *words)
        assert status == 0, said
        expected = AutoTokenizer.from_pretrained(path).encode(TEXT)
        assert tokens(path, TEXT) == tokens(out, TEXT) == expected
        assert llama_cpp_tokens(out, TEXT) == expected

    return expect


@rows(
    Condition(
        "a tiktoken tokenizer.model beside tokenizer.json",
        with_files(tokenizer__model=TIKTOKEN),
        "the converter fails on sentencepiece's error, and goes on to tokenizer.json",
        exported_as_llama_cpp_reads_it("--pre", "smollm"),
    ),
    Condition(
        "vocab.json and merges.txt",
        vocabulary_and_merges,
        "the converter has them from transformers, and knows only the vocabularies in its table",
        exported_as_llama_cpp_reads_it(),
    ),
    Condition(
        "vocab.json and merges.txt of Qwen 3",
        with_config(two_files_of("Qwen3ForCausalLM"), drop=("tokenizer_class",)),
        "the converter has them from transformers",
        exported_as_llama_cpp_reads_it(),
    ),
)
def test_exported_tokenizers(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
