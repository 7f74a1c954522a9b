"""Encode and decode by a `tokenizer.json`, as a program of its own: requests come in, answers go out.

The file is written by whoever made the model, and the package that reads it trusts it: normalizers may
multiply a text, a regular expression may never end, and some values end the process. Here they end this one.
"""

from __future__ import annotations

import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS, BYTES_PER_SECOND = 20, 50_000
"""Of the processor, for a request, and as many more for each so many bytes; it takes a hundredth of that."""
MEMORY = 2 * 2**30
MOST_TOKENS, MOST_PER_BYTE = 10_000, 20
"""Of an answer: what is put around a text, and what a byte of it can become."""
LONGEST_TEXT = 2**26
FRAME = struct.Struct("<cQ")
"""Before each message: what it is, and its size in bytes. `e` asks to encode, `d` to decode."""
GOOD, BAD = b"+", b"-"


def main() -> None:
    """Until standard input ends."""
    _limit_memory()
    try:
        with _limited_time(Path(sys.argv[1]).stat().st_size):
            tokenizer = _load(Path(sys.argv[1]))
        _answer(GOOD, b"")
    except BaseException as error:  # the package's own are none of Exception's
        _answer(BAD, _told(error))
        return
    while header := sys.stdin.buffer.read(FRAME.size):
        kind, size = FRAME.unpack(header)
        payload = sys.stdin.buffer.read(size)
        try:
            with _limited_time(size):
                answer = _encode(tokenizer, payload) if kind == b"e" else _decode(tokenizer, payload)
            _answer(GOOD, answer)
        except BaseException as error:
            _answer(BAD, _told(error))


class _limited_time:  # noqa: N801
    """The process ends if what follows takes too long for so many bytes."""

    def __init__(self, size: int) -> None:
        self.seconds = SECONDS + size / BYTES_PER_SECOND

    def __enter__(self) -> None:
        with suppress(AttributeError):  # on Windows
            signal.setitimer(signal.ITIMER_PROF, self.seconds)

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError):
            signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(path.read_bytes())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(tokenizer: Any, payload: bytes) -> bytes:
    tokens = tokenizer.encode(payload.decode("utf-8")).ids
    if len(tokens) > MOST_TOKENS + MOST_PER_BYTE * len(payload):
        raise ValueError(f"it makes {len(tokens)} tokens of {len(payload)} bytes")
    return struct.pack(f"<{len(tokens)}I", *tokens)


def _decode(tokenizer: Any, payload: bytes) -> bytes:
    tokens = struct.unpack(f"<{len(payload) // 4}I", payload)
    text: bytes = tokenizer.decode(list(tokens), skip_special_tokens=True).encode("utf-8")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"it makes {len(text)} bytes of {len(tokens)} tokens")
    return text


def _answer(kind: bytes, payload: bytes) -> None:
    sys.stdout.buffer.write(FRAME.pack(kind, len(payload)) + payload)
    sys.stdout.buffer.flush()


def _told(error: BaseException) -> bytes:
    return (str(error) or type(error).__name__)[:1000].encode("utf-8", "replace")


if __name__ == "__main__":
    main()
