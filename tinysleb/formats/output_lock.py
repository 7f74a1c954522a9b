"""One writer for each output: a lock beside it, which ends with its owner, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinysleb.errors import TinyslebError
from tinysleb.formats.files import clear_temporaries

try:
    import fcntl
except ImportError:
    HAS_LOCKS = False  # on Windows
else:
    HAS_LOCKS = True


@contextmanager
def sole_writer(out: Path, beside: Sequence[Path] = ()) -> Iterator[None]:
    """Hold the lock of an output. Temporary files of it and of what is written `beside` it can only be those
    of processes that died, and are deleted; what one had only moved away is put back.

    Where a lock cannot be had (no such folder, a file system without locks), there is none, and nothing is
    deleted; what stands in the way of writing is found by others. Raises TinyslebError if another process
    holds it.
    """
    lock = out.with_name(f".{out.name}.lock")
    held = _acquire(lock, out)
    if held is None:
        yield
        return
    try:
        for path in (out, *beside):
            clear_temporaries(path)
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released: the next owner's has the same name
        os.close(held)


def _acquire(lock: Path, out: Path) -> int | None:
    """The descriptor that holds the lock; None if there are no locks here."""
    if not HAS_LOCKS:
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise TinyslebError(
                f"{out} is being written by another process", "wait for that to end, or choose another output"
            ) from error
        except OSError:
            os.close(descriptor)
            return None
        if _is_there(lock, descriptor):
            return descriptor
        os.close(descriptor)  # its owner deleted it meanwhile


def _is_there(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
