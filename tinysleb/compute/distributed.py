"""One search in several processes: torchrun starts them, torch.distributed adds up what each computes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from tinysleb.errors import TinyslebError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """The processes that share a search: the number of this one, and how many there are."""

    rank: int = 0
    size: int = 1

    def add_up(self, values: Tensor) -> None:
        """Replace `values`, of one shape everywhere, by their sum over all processes."""
        if self.size > 1:
            with _naming_lost_process():
                distributed.all_reduce(values)

    def same_text(self, text: str | None) -> str | None:
        """Broadcast the text of process 0 to all. torch's own way for objects would unpickle it."""
        if self.size == 1:
            return text
        data = b"" if text is None else b"+" + text.encode()
        length = torch.tensor(len(data))
        with _naming_lost_process():
            distributed.broadcast(length, src=0)
            buffer = torch.zeros(int(length), dtype=torch.uint8)
            if self.rank == 0 and data:
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            distributed.broadcast(buffer, src=0)
        received = bytes(buffer.tolist())
        return received[1:].decode() if received else None

    def share(self, windows: range, candidates: Sequence[Item]) -> tuple[range, list[Item]]:
        """This process's share of a heat: a slice of the windows and, where there are fewer windows than
        processes, every k-th candidate on it."""
        slices = min(self.size, len(windows))
        mine = self.rank % slices
        peers = range(mine, self.size, slices)
        begin, end = (len(windows) * bound // slices for bound in (mine, mine + 1))
        return windows[begin:end], list(candidates[peers.index(self.rank) :: len(peers)])


@contextmanager
def join_group() -> Iterator[Group]:
    """Join the group that torchrun started this process in; without torchrun, a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    with _naming_lost_process():
        distributed.init_process_group("gloo")
    try:
        yield Group(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


def local_rank() -> int:
    """This process's number on its own machine, which chooses its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def _naming_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TinyslebError(
            f"another process of this search has ended: {str(error).splitlines()[0]}",
            "see its own error; the rounds that were finished are saved, and --resume continues from them",
        ) from error
