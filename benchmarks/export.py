"""Writing GGUFs, against `cp`, llama.cpp's converter and the gguf package.

    python benchmarks/export.py MODEL.gguf [--llama-cpp SOURCE_TREE] [--folder WHERE]

cut      a GGUF less a fifth of its blocks, and `cp` of a file of that size, both flushed to the disk
folder   a Hugging Face folder less a fifth of its blocks, and `cp` of a folder of that size
convert  a folder of 2 GB in float16 to an f16 GGUF, and llama.cpp's `convert_hf_to_gguf.py` on the same
quantise the same folder to q8_0 and q4_0, and the gguf package on whole tensors

The converter comes with the source distribution of llama-cpp-python. Runs take turns; the fastest of three
counts. Needs the test extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.quants import quantize

from tinysleb.checkpoint.config import config_from_huggingface, tensor_shapes
from tinysleb.checkpoint.gguf_names import huggingface_name, interleaved, rotated_heads
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.export.gguf_copy import copy_gguf, shortened_gguf
from tinysleb.export.gguf_writer import write_container
from tinysleb.export.writers import GGUF, write
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.safetensors_file import write_safetensors
from tinysleb.formats.units import format_bytes
from tinysleb.sublayers import whole_blocks
from tinysleb.text.windows import default_text

RUNS = 3
LARGE_BYTES = 4 * 10**9
TYPES = ("q8_0", "q4_0")
PIECES = 4000
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LAUNCHER = """
import os, sys
silent = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", 1, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""
TINYSLEB = str(Path(sys.executable).with_name("tinysleb"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    model = options.model.resolve()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.chdir(name)
        print(f"{'':<34}{'tinysleb':>10}{'peer':>10}{'ratio':>8}{'peak':>12}")
        cut(model, "cut, SmolLM2")
        cut(write_large(model), "cut, 4 GB")
        Path("large.gguf").unlink()
        write_folder(Path("folder"))
        cut_folder(Path("folder"))
        if options.llama_cpp:
            convert(options.llama_cpp.resolve())
        for type_name in TYPES:
            quantised(type_name)


def report(what: str, ours: float, peer: float, peak: int) -> None:
    print(f"{what:<34}{ours:>9.2f}s{peer:>9.2f}s{ours / peer:>7.2f}x{format_bytes(peak):>12}", flush=True)


def run(command: Sequence[object], flushed: Path | None = None) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command, its output flushed to the disk.

    A small process starts it: a program's peak counts that of the process it was forked from.
    """
    begin = time.perf_counter()
    launched = [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)]
    done = subprocess.run(launched, check=True, capture_output=True)
    if flushed is not None:
        flush(flushed)
    return time.perf_counter() - begin, int(done.stdout.split()[-1]) * 1024


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def in_turn(*runs: Callable[[], tuple[float, int]]) -> list[tuple[float, int]]:
    """The least seconds and the most bytes of each of `runs`."""

    def settled(run: Callable[[], tuple[float, int]]) -> tuple[float, int]:
        for left in Path().glob("*.out"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        os.sync()
        return run()

    results = [[settled(run) for run in runs] for _ in range(RUNS)]
    columns = [list(zip(*part, strict=True)) for part in zip(*results, strict=True)]
    return [(min(seconds), max(peaks)) for seconds, peaks in columns]


def cut(model: Path, what: str) -> None:
    """Reading the header and copying, in this process; and the program, which has to start."""
    values = read_gguf(model).values()
    blocks = values[f"{values['general.architecture']}.block_count"]
    Path("plan.json").write_text(json.dumps({"blocks": blocks, "removed": list(range(1, 1 + blocks // 5))}))
    out, copy = Path("cut.out"), Path("copy.out")
    command = [TINYSLEB, "prune", model, "--plan", "plan.json", "--force", "-o", out]
    run(command)
    like = out.rename("like.gguf")
    kept = [i for i in range(blocks) if not 1 <= i <= blocks // 5]

    def in_process() -> tuple[float, int]:
        begin = time.perf_counter()
        copy_gguf(shortened_gguf(read_gguf(model), whole_blocks(kept)), out, None)
        return time.perf_counter() - begin, 0

    copying, program, peer = in_turn(
        in_process, lambda: run(command, out), lambda: run(["/bin/cp", like, copy], copy)
    )
    report(f"{what}, {format_bytes(like.stat().st_size)}", copying[0], peer[0], program[1])
    report("     the whole program", program[0], peer[0], program[1])
    like.unlink()


def write_large(model: Path) -> Path:
    """`model` with random feed-forward parts of float16, of as many rows as it takes."""
    source = read_gguf(model)
    values = source.values()
    blocks, width = values["llama.block_count"], values["llama.embedding_length"]
    rows = LARGE_BYTES // 2 // blocks // 3 // width
    shapes = {"gate": (rows, width), "up": (rows, width), "down": (width, rows)}
    large = {f"blk.{i}.ffn_{part}.weight": shape for i in range(blocks) for part, shape in shapes.items()}
    tensors = {name: (tensor.shape, tensor.type) for name, tensor in source.tensors.items()}
    tensors |= {name: (shape, GGMLQuantizationType.F16) for name, shape in large.items()}
    noise = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32).astype(np.float16)
    length = GgufValue(rows, GGUFValueType.UINT32)
    metadata = {**source.metadata, "llama.feed_forward_length": length}

    def write_tensor(name: str, file: object) -> None:
        data = noise if name in large else source.read_bytes(name)
        file.write(data.data.cast("B"))  # type: ignore[attr-defined]

    write_container(Path("large.gguf"), metadata, tensors, 32, write_tensor)
    return Path("large.gguf")


def write_folder(folder: Path) -> None:
    """A random model of TinyLlama's shape with a tokenizer trained on Python's documentation."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE | {"torch_dtype": "float16"}))
    shapes = tensor_shapes(config_from_huggingface(SHAPE, "shape"))

    @cache
    def random(shape: tuple[int, ...]) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).half()

    write_safetensors(
        folder / "model.safetensors",
        {name: ("F16", shape) for name, shape in shapes.items()},
        lambda name: [random(shapes[name])],
    )
    Path("text").write_text(default_text(), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input="text", model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=PIECES,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip


def cut_folder(folder: Path) -> None:
    """Opening, the header and copying, in this process; `cp -r` of what comes out. The aim is 1.3."""
    weights, out, like, copy = open_model(folder), Path("cut.out"), Path("like"), Path("copy.out")
    blocks = weights.config.blocks
    kept = tuple(i for i in range(blocks) if not 1 <= i <= max(1, blocks // 5))

    def in_process() -> tuple[float, int]:
        begin = time.perf_counter()
        write(Shortened(open_model(folder), whole_blocks(kept)), out)
        return time.perf_counter() - begin, 0

    def by_cp() -> tuple[float, int]:
        seconds, peak = run(["/bin/cp", "-r", like, copy])
        begin = time.perf_counter()
        for file in copy.iterdir():
            flush(file)
        return seconds + time.perf_counter() - begin, peak

    in_process()
    out.rename(like)
    copying, peer = in_turn(in_process, by_cp)
    size = sum(file.stat().st_size for file in like.iterdir())
    report(f"cut of a folder, {format_bytes(size)}", copying[0], peer[0], 0)
    shutil.rmtree(like)


def convert(llama_cpp: Path) -> None:
    script = llama_cpp / "convert_hf_to_gguf.py"
    os.environ["PYTHONPATH"] = str(llama_cpp / "gguf-py")
    out, theirs = Path("ours.out"), Path("theirs.out")
    command = [sys.executable, script, "folder", "--outtype", "f16", "--outfile", theirs]
    ours, peer = in_turn(
        lambda: run([TINYSLEB, "export", "folder", "--gguf", out, "--type", "f16", "--force"], out),
        lambda: run(command, theirs),
    )
    del os.environ["PYTHONPATH"]
    report("f16 folder to f16 GGUF", ours[0], peer[0], ours[1])
    print(f"{'':<34}{'':>27} {format_bytes(peer[1]):>12}  (the converter)")


def quantised(type_name: str) -> None:
    """The program, and the gguf package on whole tensors that are read in this process; bytes compared."""
    weights, out, theirs = open_model(Path("folder")), Path("ours.out"), Path("theirs.out")
    like = Path("like.gguf")
    run([TINYSLEB, "export", "folder", "--gguf", like, "--type", type_name])
    written = read_gguf(like)

    def in_process() -> tuple[float, int]:
        begin = time.perf_counter()
        write(weights, out, output_format=GGUF, type_name=type_name, force=True)
        return time.perf_counter() - begin, 0

    def by_package() -> tuple[float, int]:
        begin = time.perf_counter()
        with theirs.open("wb") as file:
            for stored_name, tensor in written.tensors.items():
                name = huggingface_name(stored_name, weights.config.architecture)
                values = weights.tensor(name).float()
                heads = rotated_heads(weights.config, name)
                values = interleaved(values, heads) if heads else values
                file.write(quantize(values.numpy(), tensor.type).tobytes())
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - begin, 0

    command = [TINYSLEB, "export", "folder", "--gguf", out, "--type", type_name]
    program, ours, peer = in_turn(lambda: run(command, out), in_process, by_package)
    data, position = np.memmap(theirs, np.uint8), 0
    for stored_name, tensor in written.tensors.items():
        whole = data[position : position + tensor.nbytes]
        assert np.array_equal(written.read_bytes(stored_name).ravel(), whole), stored_name
        position += tensor.nbytes
    report(f"f16 folder to {type_name} GGUF, same bytes", ours[0], peer[0], program[1])
    report("     the whole program", program[0], peer[0], program[1])
    like.unlink()


if __name__ == "__main__":
    main()
