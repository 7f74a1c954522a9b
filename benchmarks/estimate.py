"""Does `prune --dry-run` say how long it takes?

    python benchmarks/estimate.py MODEL

Asks it, then does the job, for searches alone and with healing in closed form and distillation on few tokens;
prints both times. Each is a process of its own; starting Python counts in the job alone. What is written is
deleted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

JOBS: Sequence[Sequence[str]] = (
    ("--remove", "3", "--heal", "none"),
    ("--remove", "6", "--heal", "none"),
    ("--remove", "3", "--heal", "solve"),
    ("--remove", "3", "--distill-tokens", "32768"),
)


def tinysleb(*words: object) -> str:
    command = [sys.executable, "-m", "tinysleb", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--more", nargs="*", default=[], help="options for each job")
    options = parser.parse_args()
    print("| job | said | took | ratio |\n|---|---|---|---|")
    for job in JOBS:
        with tempfile.TemporaryDirectory() as folder:
            words = ("prune", options.model, "-o", f"{folder}/", "-q", "--json", *job, *options.more)
            said = json.loads(tinysleb(*words, "--dry-run"))["seconds"]
            begin = time.monotonic()
            tinysleb(*words)
            took = time.monotonic() - begin
        print(f"| `{' '.join(job)}` | {said:.0f} s | {took:.0f} s | {said / took:.2f} |", flush=True)


if __name__ == "__main__":
    main()
