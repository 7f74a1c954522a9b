"""A `tokenizer.json` in a process of its own, which it may end or fill; see `run_tokenizer.py`."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tinysleb.errors import TinyslebError, shown
from tinysleb.text.run_tokenizer import BAD, FRAME

PROGRAM = Path(__file__).parent / "run_tokenizer.py"
QUIET = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
"""Threads of which each would reserve memory."""


class TokenizerProcess:
    """Texts to tokens and back, as `Tokenizer` has it, by a `tokenizer.json` that nobody has checked.

    The process ends with this object.
    """

    def __init__(self, path: Path) -> None:
        """Raises TinyslebError if the file is not a tokenizer."""
        self.path = path
        command = [sys.executable, str(PROGRAM), str(path.absolute())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | QUIET, start_new_session=True,  # Ctrl-C is for the process that asks
        )  # fmt: skip
        self._close = weakref.finalize(self, _end, self._process)
        self._read_answer("is not a tokenizer file:")

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`. Raises TinyslebError if the file makes that impossible."""
        answer = self._ask(b"e", text.encode("utf-8"), "cannot be used on this text:")
        return list(struct.unpack(f"<{len(answer) // 4}I", answer))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones and those that have no text. Raises TinyslebError as
        `encode` does."""
        payload = struct.pack(f"<{len(tokens)}I", *tokens)
        return self._ask(b"d", payload, "cannot turn tokens into text:").decode("utf-8")

    def _ask(self, kind: bytes, payload: bytes, failed: str) -> bytes:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(FRAME.pack(kind, len(payload)) + payload)
            stdin.flush()
        except (OSError, ValueError):
            raise self._ended(failed) from None
        return self._read_answer(failed)

    def _read_answer(self, failed: str) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        header = stdout.read(FRAME.size)
        if len(header) < FRAME.size:
            raise self._ended(failed)
        kind, size = FRAME.unpack(header)
        answer = stdout.read(size)
        if len(answer) < size:
            raise self._ended(failed)
        if kind == BAD:
            raise TinyslebError(f"{self.path} {failed} {shown(answer.decode('utf-8', 'replace'))}")
        return answer

    def _ended(self, failed: str) -> TinyslebError:
        self._close()
        code = self._process.returncode
        why = f"it ends the process that reads it ({code})"
        if code == -getattr(signal, "SIGPROF", 0):
            why = "it takes too long"
        return TinyslebError(
            f"{self.path} {failed} {why}", "take the file from where the model was published"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # it may be in the middle of something, and has nothing to lose
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    process.wait()
