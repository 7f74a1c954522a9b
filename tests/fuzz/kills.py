"""`python -m fuzz.kills MODEL --kills 50`: commands killed at random moments lose nothing and leave nothing.

Each job is done once undisturbed. Then it is begun in a folder of its own, killed by SIGKILL, and done again,
with `--resume` where a search or a distillation was kept: the outputs have the same bytes, plans but for the
times in them, and nothing else is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from exporting import without_times

JOBS = {
    "search": "prune MODEL -o out.gguf --remove 2 --heal none --windows 2 --window-length 128",
    "heal": "prune MODEL -o out.gguf --blocks 25,5 --heal solve --heal-tokens 1024 --self-text 256",
    "distil": "prune MODEL -o out.gguf --blocks 25 --heal distill --heal-tokens 1024 --self-text 256 "
    "--distill-tokens 4096",
    "export": "export MODEL --gguf out.gguf --type q8_0",
    "folder": "export MODEL --hf out",
}


def finish(words: list[str], folder: Path) -> float:
    """Run a command to its end; the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.monotonic() - began


def digests(folder: Path) -> dict[str, str]:
    """Of all files; of plans without their times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name.endswith("plan.json"):
                data = json.dumps(without_times(json.loads(data))).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def kill(words: list[str], folder: Path, seconds: float) -> None:
    """Begin a command, and end it after a time."""
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def what_differs(words: list[str], folder: Path, seconds: float, expected: dict[str, str]) -> str:
    """Kill and continue; why the result is not as expected, or ''."""
    kill(words, folder, seconds)
    left = digests(folder)
    if any(left[name] != expected[name] for name in left.keys() & expected.keys()):
        return f"half of an output: {sorted(left)}"
    if left.keys() >= expected.keys():
        again = [*words, "--force"]
    else:
        kept = {".unfinished.json", ".unfinished.npz", ".unfinished.stored.npz"}
        again = [*words, "--resume"] if any(f"out.gguf{name}" in left for name in kept) else words
    finish(again, folder)
    found = digests(folder)
    if found == expected:
        return ""
    changed = [name for name in expected if found.get(name) != expected[name]]
    return f"after {sorted(left)}: changed {changed}, too much {sorted(found.keys() - expected.keys())}"


def main() -> None:
    """Exit with 1 if anything was lost or left."""
    parser = argparse.ArgumentParser(prog="fuzz.kills")
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random, failed = Random(asked.seed), 0
    jobs: dict[str, tuple[list[str], float, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as parent:
        for number in range(asked.kills):
            name = list(JOBS)[number % len(JOBS)]
            folder = Path(parent) / f"{number}"
            folder.mkdir()
            if name not in jobs:
                model = str(asked.model.resolve())
                words = [sys.executable, "-m", "tinysleb", *JOBS[name].replace("MODEL", model).split()]
                seconds = finish(words, folder)
                jobs[name] = words, seconds, digests(folder)
                folder = Path(parent) / f"{number} again"
                folder.mkdir()
            words, seconds, expected = jobs[name]
            moment = random.uniform(0, seconds)
            wrong = what_differs(words, folder, moment, expected)
            failed += bool(wrong)
            print(f"{name} killed after {moment:.1f} of {seconds:.1f} s: {wrong or 'the same'}", flush=True)
    print(f"{asked.kills - failed} of {asked.kills} came to the same")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
