"""What people give as a model that is none, or not a whole one: one line that says what it is."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from real_files.conditions import Condition, check, command, edit_json, refused, rows, same_logits

from reference import make_llama
from tinysleb.export.gguf_writer import write_all, write_container
from tinysleb.formats.gguf_file import GgufValue
from tinysleb.formats.safetensors_file import write_safetensors

LOADS = "transformers and the converter fail in reading the header; neither says what the file is"
Make = Callable[[Path], Path]
POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 2471645608
"""
PAGE = b"<!DOCTYPE html>\n<html>\n<head><title>Access to model is restricted</title></head></html>\n"


def model(folder: Path) -> Path:
    """A sound model, before something happens to it."""
    return make_llama(folder / "model", num_hidden_layers=3)


def with_file(name: str, content: bytes, gives: str = "") -> Make:
    """A model's folder in which one file has this content; gives that folder, or a file in it."""

    def make(folder: Path) -> Path:
        path = model(folder)
        (path / name).write_bytes(content)
        return path / gives if gives else path

    return make


def alone(name: str, content: bytes) -> Make:
    """One file and nothing else."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def folder_of(**files: bytes) -> Make:
    """A folder with files, `__` in whose names stands for a dot."""

    def make(folder: Path) -> Path:
        path = folder / "model"
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)
        return path

    return make


def saved(tensors: dict[str, torch.Tensor], path: Path) -> None:
    write_safetensors(
        path,
        {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()},
        lambda name: [tensors[name]],
    )


LORA = {
    f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.zeros(8, 64)
    for side in "AB"
}
ADAPTER = {"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "peft_type": "LORA", "r": 8}


def adapter(folder: Path) -> Path:
    path = folder / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    saved(LORA, path / "adapter_model.safetensors")
    return path


def adapter_with_config(folder: Path) -> Path:
    """Some trainers put the base model's config.json beside the adapter."""
    path = adapter(folder)
    shutil.copy(model(folder) / "config.json", path)
    return path


def renamed_adapter(folder: Path) -> Path:
    """One whose file was given the name of a model's, as for a program that looks for it."""
    path = adapter_with_config(folder)
    (path / "adapter_config.json").unlink()
    return (path / "adapter_model.safetensors").rename(path / "model.safetensors")


def gguf(tensor_type: int = 0, name: str = "m.gguf", **values: str) -> Make:
    """A GGUF with one tensor and these metadata, `__` in whose names stands for a dot."""

    def make(folder: Path) -> Path:
        path, text = folder / name, GGUFValueType.STRING
        metadata = {key.replace("__", "."): GgufValue(value, text) for key, value in values.items()}
        types = {"token_embd.weight": ((2, 256), GGMLQuantizationType.F32)}
        write_container(path, metadata, types, 32, lambda _, out: write_all(out, bytes(2048)))
        data = path.read_bytes()
        at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
        path.write_bytes(data[:at] + struct.pack("<I", tensor_type) + data[at + 4 :])
        return path

    return make


def sound_gguf(folder: Path) -> Path:
    path = folder / "whole.gguf"
    status, said = command("export", model(folder), "--gguf", path, "--type", "f16", "--pre", "smollm")
    assert status == 0, said
    return path


def without_tensors(folder: Path) -> Path:
    path = folder / "vocabulary.gguf"
    metadata = {"general.architecture": GgufValue("llama", GGUFValueType.STRING)}
    write_container(path, metadata, {}, 32, lambda *_: None)
    return path


def cut(name: str, size: int | None, start: int = 0) -> Make:
    """Part of a sound GGUF, under another name."""

    def make(folder: Path) -> Path:
        data = sound_gguf(folder).read_bytes()
        (folder / name).write_bytes(data[start:size])
        return folder / name

    return make


def later_part(folder: Path) -> Path:
    """The second part of a GGUF as llama-gguf-split makes them."""
    numbers = {"split.no": 1, "split.count": 2}
    metadata = {key: GgufValue(value, GGUFValueType.UINT16) for key, value in numbers.items()}
    path = folder / "m-00002-of-00002.gguf"
    write_container(path, metadata, {}, 32, lambda *_: None)
    return path


def cache(folder: Path) -> Path:
    snapshot = folder / "models--someone--tiny" / "snapshots" / "0123abc"
    make_llama(snapshot, num_hidden_layers=3)
    return snapshot.parent.parent


def pickle_renamed(folder: Path) -> Path:
    """torch.save writes a ZIP archive; some give it the other ending, which changes nothing."""
    path = model(folder)
    torch.save({"weight": torch.zeros(2)}, path / "model.safetensors")
    assert zipfile.is_zipfile(path / "model.safetensors")
    return path


def mlx(folder: Path) -> Path:
    path = model(folder)
    edit_json(path / "config.json", quantization={"group_size": 64, "bits": 4})
    return path


def pointer_as_index(folder: Path) -> Path:
    path = model(folder)
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_bytes(POINTER)
    return path


def truncated_safetensors(folder: Path) -> Path:
    path = model(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return path


@rows(
    Condition(
        "a Git LFS pointer in place of the weights",
        with_file("model.safetensors", POINTER),
        LOADS + " (SafetensorError: HeaderTooLarge)",
        refused("model.safetensors is a Git LFS pointer", "2471645608 bytes", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer given itself",
        with_file("model.safetensors", POINTER, "model.safetensors"),
        LOADS,
        refused("model.safetensors is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer in place of tokenizer.json",
        with_file("tokenizer.json", POINTER),
        "transformers: expected value at line 1 column 1",
        refused("tokenizer.json is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer in place of tokenizer.model",
        with_file("tokenizer.model", POINTER),
        "sentencepiece: could not parse ModelProto; the tokenizer.json beside it is the better one, and is "
        "taken by transformers if a class asks for it: but the folder was fetched by halves",
        refused("tokenizer.model is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer in place of the index",
        pointer_as_index,
        "json.decoder.JSONDecodeError",
        refused("model.safetensors.index.json is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer in place of config.json",
        with_file("config.json", POINTER),
        "json.decoder.JSONDecodeError: it looks like the config file is not a valid JSON file",
        refused("config.json is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a Git LFS pointer in place of a GGUF",
        alone("m.gguf", POINTER),
        "llama.cpp: invalid magic characters: 'vers', expected 'GGUF'",
        refused("m.gguf is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "the folder of a LoRA adapter",
        adapter,
        "transformers asks for peft, or looks for config.json; the converter finds no model",
        refused("is an adapter of 'meta-llama/Llama-3.2-1B'", "merge it into its base model first"),
    ),
    Condition(
        "an adapter with the config.json of its base model",
        adapter_with_config,
        "transformers without peft starts all weights anew, with a warning; the converter misses tensors",
        refused("is an adapter of 'meta-llama/Llama-3.2-1B'", "merge it into its base model first"),
    ),
    Condition(
        "an adapter under a name of its own",
        lambda folder: _renamed(adapter(folder), "adapter_model.safetensors", "frame.safetensors"),
        "ollama and peft ask for the usual names",
        refused("is an adapter of 'meta-llama/Llama-3.2-1B'", "merge it into its base model first"),
    ),
    Condition(
        "the file of an adapter",
        lambda folder: adapter(folder) / "adapter_model.safetensors",
        "there is no program that runs it by itself",
        refused("adapter_model.safetensors is an adapter", "merge it into its base model first"),
    ),
    Condition(
        "an adapter under the name of a model",
        renamed_adapter,
        "transformers starts all weights anew, with a warning",
        refused("model.safetensors is an adapter", "merge it into its base model first"),
    ),
    Condition(
        "a LoRA adapter as GGUF",
        gguf(general__type="adapter", general__architecture="llama"),
        "llama.cpp: missing tensor; it goes with --lora",
        refused("m.gguf is a LoRA adapter", "merge it"),
    ),
    Condition(
        "the image encoder beside a multimodal GGUF",
        gguf(general__architecture="clip", name="mmproj-model-f16.gguf"),
        "llama.cpp: unknown model architecture: 'clip' (or a hint at --mmproj)",
        refused("mmproj-model-f16.gguf is the image or sound encoder", "language model"),
    ),
    Condition(
        "an importance matrix as GGUF",
        gguf(general__type="imatrix"),
        "llama.cpp: key not found in model: general.architecture",
        refused("m.gguf is an importance matrix", "--imatrix"),
    ),
    Condition(
        "a GGUF of a vocabulary alone",
        without_tensors,
        "llama.cpp loads it with vocab_only alone",
        refused("vocabulary.gguf holds no tensors"),
    ),
    *(
        Condition(
            f"a GGUF in {removed}",
            gguf(number, general__architecture="llama"),
            f"llama.cpp: TYPE_{removed} REMOVED, invalid ggml type {number}",
            refused(f"'token_embd.weight' has the type {removed}, which llama.cpp removed", f"in {plain}"),
        )
        for number, removed, plain in (
            (4, "Q4_2", "Q4_0"),
            (5, "Q4_3", "Q4_1"),
            (31, "Q4_0_4_4", "Q4_0"),
            (33, "Q4_0_8_8", "Q4_0"),
            (36, "IQ4_NL_4_4", "IQ4_NL"),
        )
    ),
    Condition(
        "a GGUF in a type of a fork",
        gguf(139, general__architecture="llama"),
        "llama.cpp: invalid ggml type 139; ik_llama.cpp calls it IQ4_K",
        refused("has the unknown type 139", "fork of llama.cpp"),
    ),
    Condition(
        "a web page saved as a GGUF",
        alone("m.gguf", PAGE),
        "llama.cpp: invalid magic characters: '<!DO'",
        refused("m.gguf is a web page", "log in"),
    ),
    Condition(
        "a web page saved as weights",
        with_file("model.safetensors", PAGE),
        LOADS,
        refused("model.safetensors is a web page", "log in"),
    ),
    Condition(
        "a server's answer saved as weights",
        with_file("model.safetensors", b"Invalid username or password."),
        LOADS,
        refused("model.safetensors is not the file that its name says", "Invalid username or password."),
    ),
    Condition(
        "a server's answer saved as config.json",
        with_file("config.json", b"Entry not found"),
        "json.decoder.JSONDecodeError",
        refused("config.json is not the file that its name says", "Entry not found"),
    ),
    Condition(
        "an empty file of weights",
        with_file("model.safetensors", b""),
        LOADS + " (HeaderTooSmall)",
        refused("model.safetensors is empty", "fetch the file again"),
    ),
    Condition(
        "a download that only reserved its space",
        alone("m.gguf", bytes(1 << 16)),
        "llama.cpp: invalid magic characters",
        refused("m.gguf begins with zeros", "fetch the file again"),
    ),
    Condition(
        "a truncated GGUF",
        cut("m.gguf", -5000),
        "llama.cpp: data is not within the file bounds, model is corrupted or incomplete",
        refused("m.gguf is truncated", "fetch the file again"),
    ),
    Condition(
        "a GGUF truncated in its header",
        cut("m.gguf", 3000),
        "llama.cpp: failed to read key-value pairs",
        refused("m.gguf is truncated", "fetch the file again"),
    ),
    Condition(
        "truncated weights",
        truncated_safetensors,
        "safetensors: MetadataIncompleteBuffer",
        refused("model.safetensors should have", "fetch it again"),
    ),
    Condition(
        "the second part of a GGUF as llama-gguf-split makes them",
        later_part,
        "llama.cpp: illegal split file idx: 1, model must be loaded with the first split",
        refused("one of 2 parts", "m-00001-of-00002.gguf"),
    ),
    Condition(
        "the first part of a GGUF cut by hand",
        cut("m.gguf-split-a", 20000),
        "llama.cpp reads it up to its end, and says it is incomplete",
        refused("m.gguf-split-a is one part of a file", "cat m.gguf-split-* > m.gguf"),
    ),
    Condition(
        "a later part of a GGUF cut by hand",
        cut("m.gguf.part2of2", None, 20000),
        "llama.cpp: invalid magic characters",
        refused("m.gguf.part2of2 is one part of a file", "cat m.gguf.part* > m.gguf"),
    ),
    Condition(
        "a pickled checkpoint",
        alone("pytorch_model.bin", b"PK\x03\x04" + bytes(100)),
        "transformers loads it, with weights_only; we unpickle nothing",
        refused("pytorch_model.bin holds pickled weights", "safetensors"),
    ),
    Condition(
        "a pickled checkpoint of another ending",
        alone("consolidated.00.pth", b"\x80\x02}q\x00."),
        "Meta's own program alone loads it",
        refused("consolidated.00.pth holds pickled weights", "safetensors"),
    ),
    Condition(
        "a pickled checkpoint renamed",
        pickle_renamed,
        LOADS,
        refused("model.safetensors holds pickled weights", "safetensors"),
    ),
    Condition(
        "a GGUF renamed",
        lambda folder: sound_gguf(folder).rename(folder / "model" / "model.safetensors"),
        LOADS,
        refused("model.safetensors is a GGUF file", ".gguf"),
    ),
    Condition(
        "weights renamed",
        lambda folder: (model(folder) / "model.safetensors").rename(folder / "m.gguf"),
        "llama.cpp: invalid magic characters",
        refused("m.gguf is a safetensors file", ".safetensors"),
    ),
    Condition(
        "a file older than GGUF",
        alone("ggml-model-q4_0.bin", b"tjgg" + bytes(100)),
        "llama.cpp: invalid magic characters: 'tjgg'",
        refused("ggml-model-q4_0.bin is a GGML file", "GGUF"),
    ),
    Condition(
        "a folder that MLX quantised",
        mlx,
        "transformers and the converter fail on the shapes, or on `.scales` and `.biases`",
        refused("config.json", "quantised for MLX (4 bits)", "GGUF"),
    ),
    Condition(
        "a folder of an old MLX",
        folder_of(weights__npz=b"PK\x03\x04", config__json=b"{}"),
        "transformers: no file named model.safetensors",
        refused("weights.npz is an archive of NumPy arrays, as MLX has them", "safetensors"),
    ),
    Condition(
        "a folder of ONNX files",
        folder_of(model__onnx=b"\x08\x07", config__json=b"{}"),
        "transformers: no file named model.safetensors",
        refused("model.onnx is an ONNX file", "safetensors"),
    ),
    Condition(
        "an ONNX file",
        alone("model.onnx", b"\x08\x07\x12\x07pytorch" + bytes(100)),
        "transformers asks for a folder",
        refused("model.onnx is an ONNX file", "safetensors"),
    ),
    Condition(
        "a folder of GGUF files",
        folder_of(a__gguf=b"GGUF", b__gguf=b"GGUF"),
        "transformers asks for gguf_file",
        refused("holds several models: a.gguf, b.gguf", "a.gguf"),
    ),
    Condition(
        "a model's place in the Hugging Face cache",
        cache,
        "transformers: no file named config.json",
        refused("is a model's place in the Hugging Face cache", "snapshots/0123abc"),
    ),
    Condition(
        "the format that Meta and Mistral publish",
        folder_of(consolidated__safetensors=b"", params__json=b"{}"),
        "transformers: no file named config.json; vLLM has --load-format mistral",
        refused("in the format that Meta and Mistral publish"),
    ),
    Condition(
        "the index of the shards in place of their folder",
        lambda folder: pointer_as_index(folder) / "model.safetensors.index.json",
        "transformers asks for a folder",
        refused("model.safetensors.index.json is a Git LFS pointer"),
    ),
    Condition(
        "config.json in place of its folder",
        lambda folder: model(folder) / "config.json",
        "transformers asks for a folder",
        refused("config.json is one of a model's files", "give the folder"),
    ),
    Condition(
        "a Git LFS pointer in place of the chat template",
        with_file("chat_template.jinja", POINTER),
        "transformers takes it for the template",
        refused("chat_template.jinja is a Git LFS pointer", by=("prune", "--remove", "1")),
    ),
    Condition(
        "a diffusers pipeline",
        folder_of(model_index__json=b"{}"),
        "transformers: no file named config.json",
        refused("is a diffusers pipeline"),
    ),
    Condition(
        "a name of the Hugging Face Hub",
        lambda _: Path("meta-llama/Llama-3.2-1B"),
        "transformers downloads it; we never download",
        refused("there is no file or folder meta-llama/Llama-3.2-1B", "hf download"),
    ),
)
def test_wrong_files(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_an_adapter_that_was_merged_leaves_its_config_behind(tmp_path: Path) -> None:
    """transformers without peft, and the converter, look at the merged weights alone."""
    path = model(tmp_path)
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    same_logits(path)


def _renamed(folder: Path, name: str, other: str) -> Path:
    (folder / name).rename(folder / other)
    return folder
