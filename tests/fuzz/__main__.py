"""`python -m fuzz --cases 100000 --first 0`: many cases, and what failed, each cause once."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from fuzz.run_case import Verdict, run_cases
from fuzz.samples import make_samples, no_llama_cpp

ROOM = 2**30


def several(cases: tuple[Path, Sequence[int]]) -> tuple[int, list[Verdict]]:
    """How many succeeded, and those that failed."""
    samples, seeds = cases
    verdicts = list(run_cases(seeds, samples))
    failed = [_again(each, samples) for each in verdicts if each.cause]
    return sum(each.code == 0 for each in verdicts), failed


def _again(verdict: Verdict, samples: Path) -> Verdict:
    """What the case does alone."""
    (alone,) = run_cases([verdict.seed], samples)
    return alone if alone.cause else replace(verdict, cause=f"{verdict.cause}, but not alone")


def _folder_in_memory() -> str | None:
    """Where flushing a file takes no time, if there is room."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and shutil.disk_usage(folder).free > ROOM else None


def main() -> None:
    """Exit with 1 if any case failed."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first case")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    no_llama_cpp()
    with tempfile.TemporaryDirectory(dir=_folder_in_memory()) as folder:
        samples = make_samples(Path(folder) / "samples")
        chunks = [
            (samples, range(begin, min(begin + 50, asked.first + asked.cases)))
            for begin in range(asked.first, asked.first + asked.cases, 50)
        ]
        causes, succeeded, done = Counter[str](), 0, 0
        with get_context("fork").Pool(asked.processes) as pool:
            for chunk, (good, failed) in zip(chunks, pool.imap(several, chunks), strict=True):
                succeeded, done = succeeded + good, done + len(chunk[1])
                for verdict in failed:
                    causes[verdict.cause] += 1
                    if causes[verdict.cause] == 1:
                        print(verdict, flush=True)
                if done % 500 == 0:
                    print(f"{done} cases, {succeeded} of them succeed, {len(causes)} causes", flush=True)
    for cause, count in causes.most_common():
        print(f"{count:6} {cause}")
    print(f"{done} cases, {succeeded} of them succeed, {sum(causes.values())} failed of {len(causes)} causes")
    sys.exit(bool(causes))


if __name__ == "__main__":
    main()
