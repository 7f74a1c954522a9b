"""Files whose values have any type: opening them succeeds, or says which value is wrong.

Which keys the program reads is recorded while it opens each model, so that new ones are tested, too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from reference import LLAMA3_ROPE, LONG_ROPE, make_variant, with_metadata
from tinysleb.checkpoint.architectures import BY_HUGGINGFACE_NAME
from tinysleb.checkpoint.gguf_source import gguf_weights
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.settings import SettingsReader
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.describe import describe
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.export.draft import check_draft
from tinysleb.export.gguf_vocab import add_vocabulary
from tinysleb.export.writers import write
from tinysleb.formats.files import read_json_object
from tinysleb.formats.gguf_file import GgufFile, GgufValue, read_gguf
from tinysleb.text.tokenizer import open_tokenizer

COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**31, 0))
ANY_VALUE: tuple[Any, ...] = (
    3, -1, 0, 2**31, 10**30, 1.5, 1e-46, 1e39, math.nan, math.inf, -math.inf, "x", "", True, False,
    [], [1, "a"], [[]], [{}], [math.nan], [10**30], [-1], [1e-46], ["a", ["b"]], {}, {"a": 1}, {"": None},
    None, "9" * 4000, int("9" * 4000), ["9" * 4000],
)  # fmt: skip
LONGEST_MESSAGE = 2000
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
GGUF_MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "yarn": YARN,
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "longrope": YARN | {"rope.scaling.type": "longrope"},
    "sliding": {"attention.sliding_window": 12},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "old rope": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "longrope": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_parameters": LONG_ROPE},
    "partial": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    },
    "sliding": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "sliding_window": 12,
        "use_sliding_window": True,
    },
    "unrotated": {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"},
    "granite": {"architectures": ["GraniteForCausalLM"], "model_type": "granite"},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}},
}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_prefix_space": True,
    "added_tokens_decoder": {"5": {"content": "<x>", "special": True}},
    "chat_template": "{{ messages }}",
}


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys that were read of settings, as errors name them."""
    found: set[str] = set()
    value = SettingsReader.value

    def recorded(self: SettingsReader, key: str, default: Any = None) -> Any:
        found.add(self.prefix + key)
        return value(self, key, default)

    monkeypatch.setattr(SettingsReader, "value", recorded)
    return found


READS: tuple[Callable[[Checkpoint], Any], ...] = (
    lambda model: json.dumps(describe(model, 256, COMPUTE), ensure_ascii=False).encode(),
    lambda model: model.chat_template().encode(),
    lambda model: json.dumps(model.earlier_plan(), indent=1, ensure_ascii=False).encode(),
    lambda model: open_tokenizer(model).encode("text"),
)
"""All that is read of a model but its weights, and that it can be printed or stored."""


def use(open_: Callable[[], Checkpoint]) -> None:
    """Open a model and read of it. Whatever is wrong must be a TinyslebError."""
    with readable_error():
        model = open_()
        for read in READS:
            with readable_error():
                read(model)


@contextmanager
def readable_error() -> Iterator[None]:
    """Success, or a TinyslebError that can be printed, of a length that can be read."""
    line = ""
    try:
        yield
    except TinyslebError as error:
        line = error.one_line
    assert len(line.encode()) < LONGEST_MESSAGE


def gguf_value(value: Any) -> GgufValue:
    """A value as the parser gives it; its type is not looked at here."""
    kind = gguf.GGUFValueType.ARRAY if isinstance(value, list) else gguf.GGUFValueType.STRING
    return GgufValue(value, kind)


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_any_value_of_any_metadata_key(name: str, tiny_gguf: Path, keys_read: set[str]) -> None:
    plain = read_gguf(tiny_gguf)
    metadata = dict(plain.metadata)
    metadata |= {f"llama.{key}": gguf_value(value) for key, value in GGUF_MODELS[name].items()}
    file = replace(plain, metadata=metadata)
    if name == "longrope":
        factors = plain.tensors["blk.0.attn_norm.weight"]
        factors = replace(factors, shape=(8,))
        file = replace(file, tensors={**plain.tensors, "rope_factors_long.weight": factors})
    use(partial(gguf_weights, file))
    assert "llama.rope.freq_base" in keys_read
    for key in sorted(keys_read | set(metadata) | {"tinysleb.plan", "tokenizer.chat_template"}):
        if name == "plain" or not key.startswith("tokenizer."):
            for value in ANY_VALUE:
                changed = replace(file, metadata=metadata | {key: gguf_value(value)})
                use(partial(gguf_weights, changed))


def test_any_value_in_a_sentencepiece_vocabulary(
    sentencepiece_folder: Path, run: Callable[..., Any], keys_read: set[str]
) -> None:
    assert run("export", sentencepiece_folder, "--gguf", "m.gguf").exit_code == 0
    file = read_gguf(Path("m.gguf"))
    assert open_tokenizer(gguf_weights(file)).encode("a")
    for key in sorted(key for key in keys_read | set(file.metadata) if key.startswith("tokenizer.")):
        for value in (*ANY_VALUE, *damaged_lists(file, key)):
            changed = replace(file, metadata={**file.metadata, key: gguf_value(value)})
            use(partial(gguf_weights, changed))


def damaged_lists(file: GgufFile, key: str) -> Iterator[list[Any]]:
    """The list as it is, but for one entry."""
    value = file.values().get(key)
    if isinstance(value, list):
        for wrong in ANY_VALUE:
            yield [*value[:9], wrong, *value[10:]]
        yield value[:-1]
        yield [value[0]] * len(value)


SPLIT = {"split.count": 2, "split.no": 0, "split.tensors.count": 57}


@pytest.mark.parametrize("key", ["general.alignment", "general.architecture", *SPLIT])
def test_any_value_of_the_keys_that_the_container_reads(
    key: str, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tinysleb.formats.gguf_file as container

    path = tmp_path / "m-00001-of-00002.gguf"
    second = tmp_path / "m-00002-of-00002.gguf"
    plain = read_gguf(tiny_gguf)
    values = {name: gguf_value(value) for name, value in SPLIT.items()}
    for value in ANY_VALUE:
        metadata = {**plain.metadata, **values, key: gguf_value(value)}
        first = GgufFile(path, metadata, plain.tensors, 32)
        other = GgufFile(second, {**values, "split.no": gguf_value(1)}, {}, 32)
        files = {path: first, second: other}
        path.touch()
        second.touch()
        monkeypatch.setattr(container, "_read_one", files.__getitem__)
        try:
            container._alignment(metadata, path)
            use(lambda: gguf_weights(read_gguf(path)))
        except TinyslebError:
            continue


@pytest.mark.parametrize("name", CONFIGS)
def test_any_value_of_any_key_of_a_config(
    name: str, tiny_folder: Path, tmp_path: Path, keys_read: set[str]
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").unlink()  # which is read without the config, in a process of its own
    plain = json.loads((folder / "config.json").read_text()) | CONFIGS[name]
    use(partial(written, folder, "config.json", plain))
    assert "num_hidden_layers" in keys_read
    top = set(CONFIGS[name]) | set(BY_HUGGINGFACE_NAME[plain["architectures"][0]].keys)
    if name in ("plain", "longrope"):
        top |= {key for key in keys_read | set(plain) if ":" not in key}
    for key in sorted(top):
        for value in ANY_VALUE:
            use(partial(written, folder, "config.json", plain | {key: value}))
        if isinstance(plain.get(key), dict):
            inner = {name.removeprefix("rope: ") for name in keys_read if name.startswith("rope: ")}
            for part in sorted(inner | set(plain[key])):
                for value in ANY_VALUE:
                    nested = plain | {key: plain[key] | {part: value}}
                    use(partial(written, folder, "config.json", nested))


def written(folder: Path, name: str, values: Any) -> Checkpoint:
    (folder / name).write_text(json.dumps(values))
    return open_model(folder)


def test_any_value_of_the_files_around_a_model(sentencepiece_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    for name in ("tokenizer_config.json", "added_tokens.json", "plan.json"):
        for value in (*ANY_VALUE, "\ud800"):
            use(partial(written, folder, name, value))
            use(partial(written, folder, name, {"a": value}))
        (folder / name).unlink()
    for key in TOKENIZER_CONFIG:
        for value in (*ANY_VALUE, "\ud800"):
            changed = TOKENIZER_CONFIG | {key: value}
            use(partial(written, folder, "tokenizer_config.json", changed))
            with readable_error():
                add_vocabulary(gguf.GGUFWriter(None, "llama"), folder, 512, None)
    for index in ("5", "-1", "x", "²", "9" * 30):
        for item in (*ANY_VALUE, {"content": 3}, {"content": "<x>", "special": "yes"}, {"content": "\ud800"}):
            changed = {"added_tokens_decoder": {index: item}}
            use(partial(written, folder, "tokenizer_config.json", changed))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 500 + "1" + "}" * 500, "{", "nan"]
)
def test_a_plan_that_cannot_be_read_is_none(
    text: str, tiny_gguf: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    file = read_gguf(tiny_gguf)
    changed = replace(file, metadata={**file.metadata, "tinysleb.plan": gguf_value(text)})
    assert gguf_weights(changed).earlier_plan() == {}
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "plan.json").write_text(text)
    assert open_model(folder).earlier_plan() == {}


WRONG: dict[str, tuple[str, Any, str]] = {
    "an object": ("config.json", {"quantization_config": "fp8"}, "`quantization_config` is 'fp8'"),
    "too small for float32": ("config.json", {"rms_norm_eps": 1e-46}, "`rms_norm_eps` is 1e-46"),
    "a list of objects": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "`added_tokens_decoder`"),
    "without content": ("tokenizer_config.json", {"added_tokens_decoder": {"5": {}}}, "no .* 5: content`"),
    "an index": ("added_tokens.json", {"<x>": "5"}, "`<x>` is '5'"),
    "a number for no float": ("tokenizer_config.json", {"x": 10**400}, "it has a number of 401 digits"),
    "half a pair": ("tokenizer_config.json", {"chat_template": "\ud800"}, "is not valid JSON"),
}


@pytest.mark.parametrize(("name", "changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(
    name: str, changes: dict[str, Any], message: str, sentencepiece_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    plain = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    with pytest.raises(TinyslebError, match=message) as caught:
        open_tokenizer(written(folder, name, plain | changes))
    assert str(folder / name) in caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.sliding_window", "wide"),
        ("llama.attention.sliding_window", [1, 2]),
        ("llama.rope.dimension_count", 2**31 - 1),
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.token_type", 1),
        ("tokenizer.ggml.bos_token_id", -1),
        ("tokenizer.ggml.bos_token_id", 10**6),
    ],
)
def test_a_wrong_value_of_a_gguf_is_named(key: str, value: Any, tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    changed = replace(file, metadata={**file.metadata, key: gguf_value(value)})
    with pytest.raises(TinyslebError, match=f"{tiny_gguf}: `{key}` is"):
        open_tokenizer(gguf_weights(changed))


def test_a_tensor_that_is_already_called_as_in_a_folder(tiny_gguf: Path) -> None:
    """It would pass for complete, and not be found when it is read."""
    file = read_gguf(tiny_gguf)
    renamed = {"model.norm.weight" if n == "output_norm.weight" else n: t for n, t in file.tensors.items()}
    with pytest.raises(TinyslebError, match=r"1 missing: model.norm.weight; .*not a GGUF's name"):
        gguf_weights(replace(file, tensors=renamed))


def test_a_shard_with_a_name_that_no_file_can_have(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "x" * 300 + ".safetensors"}}
    with pytest.raises(TinyslebError, match=r"names the shard 'xxx.*\.\.\.$"):
        written(folder, "model.safetensors.index.json", index)


def test_a_merged_gguf_has_no_parts(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp's gguf-split leaves a count of 0 in a file that it merged."""
    none = {"split.count": GgufValue(0, gguf.GGUFValueType.UINT16)}
    assert open_model(with_metadata(tiny_gguf, tmp_path / "merged.gguf", none)).config.blocks == 6


def test_an_architecture_that_is_a_list_is_not_cut(
    tiny_gguf: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    names = GgufValue(["llama"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    path = with_metadata(tiny_gguf, tmp_path / "odd.gguf", {"general.architecture": names})
    (tmp_path / "plan.json").write_text('{"blocks": 6, "removed": [3], "kept": [0, 1, 2, 4, 5]}')
    result = run("prune", path, "-o", "out.gguf", "--plan", "plan.json")
    assert result.exit_code == 1
    assert "`general.architecture` is ['llama']" in result.stderr


def test_a_surrogate_pair_in_json_is_text(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": "\\ud83d\\ude80"}')
    assert read_json_object(tmp_path / "m.json") == {"a": "🚀"}


@pytest.mark.parametrize("text", [b'{"a": "\\ud83d"}', b'{"a": "\xed\xa0\x80"}', b'{"\xed\xa0\x80": 1}'])
def test_half_a_surrogate_pair_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(text)
    with pytest.raises(TinyslebError, match="is not valid JSON"):
        read_json_object(tmp_path / "m.json")


def test_any_value_of_what_decides_whether_one_drafts_for_another(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    for name in ("model", "tokens", "add_bos_token", "add_eos_token", "bos_token_id", "eos_token_id"):
        for value in ANY_VALUE:
            changed = replace(file, metadata={**file.metadata, f"tokenizer.ggml.{name}": gguf_value(value)})
            for draft, target in ((changed, file), (file, changed), (changed, changed)):
                with readable_error():
                    check_draft(draft, target)


@pytest.mark.parametrize("key", ["tokenizer.chat_templates", "tokenizer.ggml.add_eos_token"])
def test_what_only_a_folder_needs_is_named(key: str, tiny_gguf: Path, tmp_path: Path) -> None:
    file = read_gguf(tiny_gguf)
    wrong: tuple[Any, ...] = (5, "x", [[]], [1])
    for value in wrong:
        changed = replace(file, metadata={**file.metadata, key: gguf_value(value)})
        with pytest.raises(TinyslebError, match=f"`{key}` is"):
            write(gguf_weights(changed), tmp_path / "out")


def test_what_only_a_gguf_needs_is_named(run: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_variant("phi3", tmp_path / "phi3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"original_max_position_embeddings": "long"}))
    result = run("export", folder, "--gguf", "m.gguf", "--pre", "smollm")
    assert result.exit_code == 1
    assert "`original_max_position_embeddings` is 'long'" in result.stderr


@pytest.mark.parametrize("key", ["tokens", "token_type", "merges", "scores"])
@pytest.mark.parametrize(
    "words", [("prune", "--blocks", "3", "-o", "x.gguf"), ("export", "--gguf", "x.gguf")]
)
def test_a_vocabulary_that_is_a_number_is_refused_by_what_writes_it(
    key: str, words: tuple[str, ...], tiny_gguf: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    changes = {f"tokenizer.ggml.{key}": GgufValue(32768, gguf.GGUFValueType.UINT32)}
    model = with_metadata(tiny_gguf, tmp_path / "m.gguf", changes)
    result = run(words[0], model, *words[1:])
    assert result.exit_code == 1
    assert f"tokenizer.ggml.{key}" in result.stderr
    assert not Path("x.gguf").exists()
