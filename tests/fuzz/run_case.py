"""Run cases in a forked process with limits, and judge what came of each."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from pydoc_data import topics
from typing import Any, NoReturn

from fuzz.cases import Case, make_case

from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.compute import device
from tinysleb.errors import TinyslebError
from tinysleb.measure import drawn, writing
from tinysleb.measure.prompts import PROMPTS

SECONDS, BYTES = 10, 2**30
"""Allowed for a case; memory beyond what the process that forks has."""
LONGEST_ERROR = 2000
INVALID = 99
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
OUTPUTS = ("out", "out.gguf", "out.html", "out.plan.json")

# Of what does not depend on the file, little: answers, documentation, and how fast the processor is.
writing.WRITTEN = 8
writing.questions.__defaults__ = (PROMPTS[:4],)
vars(drawn).update(WRITTEN=8, DRAWS=1)
vars(device).update(PROBE_SIZE=64, PROBE_RUNS=1)
vars(topics)["topics"] = {"text": "Some words of prose. " * 500}


@dataclass(frozen=True)
class Verdict:
    """Of a case: why it failed, or ''; `cause` is the same for cases that fail in one place."""

    seed: int
    words: Sequence[str]
    change: str
    code: int
    cause: str
    output: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.cause}\n  {self.change[:200]}\n  tinysleb {' '.join(self.words)}\n"
            f"  exit {self.code}: {self.output[-1500:]}"
        )


def run_cases(seeds: Sequence[int], samples: Path) -> Iterator[Verdict]:
    """Run cases one after the other in a forked process, and in another from where one ended it."""
    waiting = deque(seeds)
    while waiting:
        for verdict in _judged_by_one_process(tuple(waiting), samples):
            waiting.popleft()
            yield verdict


def _judged_by_one_process(seeds: Sequence[int], samples: Path) -> Iterator[Verdict]:
    """Of each seed, as far as the process got. The last verdict is then that it was ended."""
    receiver, sender = Pipe(duplex=False)
    if not (child := os.fork()):
        _run_all(seeds, samples, sender)
    sender.close()
    for seed in seeds:
        case = Case([], "")  # until it is known: making it may end the process, too
        try:
            case = _received(receiver)
            yield _received(receiver)
        except EOFError:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            yield Verdict(seed, case.words, case.change, code, f"ends the process: {code}", "")
            return
    os.waitpid(child, 0)


def _received(receiver: Connection) -> Any:
    """Raises EOFError when nothing comes. The process ends itself after SECONDS of its own."""
    if not receiver.poll(SECONDS * 3):
        raise EOFError
    return receiver.recv()


def _run_all(seeds: Sequence[int], samples: Path, sender: Connection) -> NoReturn:
    errors = os.fdopen(os.dup(2), "w")
    try:
        for seed in seeds:
            folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=samples.parent))
            case = make_case(seed, samples, folder)
            sender.send(case)
            sender.send(_judge(seed, case, folder))
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # of the fuzzer itself
        traceback.print_exc(file=errors)
        errors.flush()
    finally:
        os._exit(0)


def _judge(seed: int, case: Case, folder: Path) -> Verdict:
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    code, output, errors = _run(case.words, folder)
    left = {path.relative_to(folder) for path in folder.rglob("*")} - before
    cause = _cause(code, output, errors) or _leftover(left, code, case.words)
    return Verdict(seed, case.words, case.change, code, cause, output + errors)


def _run(words: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """The exit code, and what was printed."""
    paths = [folder.with_suffix(suffix) for suffix in (".stdout", ".stderr")]
    os.chdir(folder)
    _limit_resources()
    with _printed_into(*paths):
        code = _exit_code(words)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    texts = [path.read_bytes().decode("utf-8", "surrogateescape") for path in paths]
    for path in paths:
        path.unlink()
    return code, texts[0], texts[1]


def _limit_resources() -> None:
    """From here on, for this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, resource.RLIM_INFINITY))
    seconds = math.ceil(time.process_time()) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


@contextmanager
def _printed_into(*paths: Path) -> Iterator[None]:
    """What is printed goes to files, also by libraries that do not ask Python."""
    for number, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    yield
    sys.stdout.flush()
    sys.stderr.flush()


def _exit_code(words: Sequence[str]) -> int:
    try:
        if (code := _ended(words)) == 0:
            _check_outputs(words)
    except BaseException:
        traceback.print_exc()
        return INVALID
    return code


def _ended(words: Sequence[str]) -> int:
    try:
        main.main(list(words), prog_name="tinysleb", color=True)
    except SystemExit as error:
        return int(error.code or 0)


def _check_outputs(words: Sequence[str]) -> None:
    """Whatever was written can be opened, as the model can that it was made from; those that are only copied
    need not."""
    try:
        open_model(Path(words[1]))
    except TinyslebError:
        return
    for name in ("out", "out.gguf"):
        if Path(name).exists() and name in words:
            open_model(Path(name))


def _cause(code: int, output: str, errors: str) -> str:
    """Why it failed; '' if it did not."""
    if "Traceback (most recent call last)" in errors or code == INVALID:
        return _place(errors)
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if found := FORBIDDEN.search(output + errors):
        return f"prints {found[0]!a}"
    if found := re.search(r"\w*Warning: .*", errors):
        return found[0][:80]
    lines = [line for line in errors.splitlines() if line.startswith("Error:")]
    if len(lines) != (code != 0) or any(len(line) > LONGEST_ERROR for line in lines):
        return f"{len(lines)} lines of errors"
    return _json_cause(output) if code == 0 and output.startswith("{") else ""


def _json_cause(output: str) -> str:
    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        json.loads(output, parse_constant=refuse, parse_float=_finite)
    except ValueError as error:
        return f"prints what is not JSON: {error}"
    return ""


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _place(errors: str) -> str:
    """The error, and where in tinysleb it came from."""
    frames = re.findall(r'File "([^"]*)", line (\d+), in (\S+)', errors)
    own = [each for each in frames if "/tinysleb/" in each[0] or "/export/" in each[0]]
    last = re.findall(r"^[\w.]+(?:Error|Exception|Interrupt|Warning)\b", errors, re.MULTILINE)
    where = f"{own[-1][0].rpartition('/')[2]}:{own[-1][1]} {own[-1][2]}" if own else "nowhere of ours"
    return f"{last[-1] if last else 'traceback'} in {where}"


def _leftover(left: set[Path], code: int, words: Sequence[str]) -> str:
    """What a command left that is no output of it, and nothing to continue from. A model that is no draft of
    another is written first."""
    written = code == 0 or "--draft" in words
    names = {path.parts[0] for path in left}
    strange = [name for name in names if ".unfinished." not in name and not (written and name in OUTPUTS)]
    return f"leaves {strange[0]}" if strange else ""
