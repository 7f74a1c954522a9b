"""What a shortened model is worth in llama.cpp: perplexity, size, tokens per second.

    python benchmarks/llama_cpp.py MODEL.gguf PLAN.json TEXT [REMOVED ...]

Cuts MODEL by the first 0, 3, 6, … blocks of PLAN, evaluates each on TEXT, and times prompt and generation in
llama.cpp (the wheel xllamacpp), the models in turn, best of several runs. Needs the test extra.

The ideal is what the smaller work allows: a prompt's time goes with the weights that multiply for each token,
which are those of the blocks, since llama.cpp applies the head to the last token only; generation goes with
those of blocks and head, or with the bytes they are stored in, whichever shrinks more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import xllamacpp

from tinysleb.checkpoint.config import head_name
from tinysleb.checkpoint.open_model import open_model

RUNS, GENERATED = 4, 64
PROMPT = "The transformer is a stack of blocks, and each of them adds something to the stream. " * 30


def tinysleb(*words: object) -> str:
    command = [str(Path(sys.executable).with_name("tinysleb")), *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def server(path: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 2048
    params.cpuparams.n_threads = 2
    params.warmup = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def speeds(running: Any) -> tuple[float, float]:
    request = {"prompt": PROMPT, "n_predict": GENERATED, "temperature": 0, "cache_prompt": False}
    timings = running.handle_completions(request | {"ignore_eos": True})["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def work(path: Path) -> tuple[int, int, int]:
    """Weights that multiply in the blocks, in blocks and head, and the bytes of the latter."""
    weights = open_model(path)
    head = head_name(weights.config)
    matrices = {
        name: info for name, info in weights.tensors.items() if len(info.shape) > 1 and "embed" not in name
    } | {head: weights.tensors[head]}
    counts = {name: prod(info.shape) for name, info in matrices.items()}
    total = sum(counts.values())
    return total - counts[head], total, sum(info.nbytes for info in matrices.values())


def ideal(original: tuple[int, int, int], cut: tuple[int, int, int]) -> tuple[float, float]:
    """The speed-up that the smaller work allows, of prompt and generation."""
    blocks, both, stored = (before / after for before, after in zip(original, cut, strict=True))
    return blocks, max(both, stored)


def main() -> None:
    model, plan, text, *counts = sys.argv[1:]
    removed = json.loads(Path(plan).read_text())["removed"]
    blocks = json.loads(tinysleb("inspect", model, "--json"))["blocks"]
    with tempfile.TemporaryDirectory() as name:
        paths = {}
        for count in map(int, counts or ["0", "3", "6"]):
            cut = Path(name) / "plan.json"
            cut.write_text(json.dumps({"blocks": blocks, "removed": removed[:count]}))
            paths[count] = Path(name) / f"{count}.gguf"
            tinysleb("prune", model, "--plan", cut, "-o", paths[count])
        servers = {count: server(path) for count, path in paths.items()}
        runs = [{count: speeds(running) for count, running in servers.items()} for _ in range(RUNS)]
        print("removed  perplexity  MB     prompt tokens/s       of ideal  generated tokens/s    of ideal")
        original, first = next(iter(paths.values())), None
        for count, path in paths.items():
            words = ("eval", path, "--text", text, "--windows", 16, "--json")
            perplexity = json.loads(tinysleb(*words))["perplexity"]
            fastest = [max(run[count][i] for run in runs) for i in (0, 1)]
            first = first or fastest
            line = f"{count:<9}{perplexity:<12.2f}{path.stat().st_size / 1e6:<7.1f}"
            for speed, before, limit in zip(fastest, first, ideal(work(original), work(path)), strict=True):
                line += f"{f'{speed:.0f} ({speed / before:.2f}x)':<22}{speed / before / limit:<10.0%}"
            print(line)


if __name__ == "__main__":
    main()
