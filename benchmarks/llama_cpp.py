"""What a shortened model is worth in llama.cpp: perplexity, size, tokens per second.

    python benchmarks/llama_cpp.py MODEL.gguf PLAN.json TEXT [REMOVED ...]

Cuts MODEL by the first 0, 3, 6, … blocks of PLAN, evaluates each on TEXT, and times prompt and generation in
llama.cpp (the wheel xllamacpp), the models in turn, best of several runs. Needs the test extra.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import xllamacpp

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


def main() -> None:
    model, plan, text, *counts = sys.argv[1:]
    removed = json.loads(Path(plan).read_text())["removed"]
    blocks = json.loads(tinysleb("inspect", model, "--json"))["blocks"]
    with tempfile.TemporaryDirectory() as name:
        paths = {}
        for count in map(int, counts or [0, 3, 6]):
            cut = Path(name) / "plan.json"
            cut.write_text(json.dumps({"blocks": blocks, "removed": removed[:count]}))
            paths[count] = Path(name) / f"{count}.gguf"
            tinysleb("prune", model, "--plan", cut, "-o", paths[count])
        servers = {count: server(path) for count, path in paths.items()}
        runs = [{count: speeds(running) for count, running in servers.items()} for _ in range(RUNS)]
        print("removed  perplexity  MB     prompt tokens/s  generated tokens/s")
        for count, path in paths.items():
            words = ("eval", path, "--text", text, "--windows", 16, "--json")
            perplexity = json.loads(tinysleb(*words))["perplexity"]
            prompt, generated = (max(run[count][i] for run in runs) for i in (0, 1))
            size = path.stat().st_size / 1e6
            print(f"{count:<9}{perplexity:<12.2f}{size:<7.1f}{prompt:<17.0f}{generated:.0f}")


if __name__ == "__main__":
    main()
