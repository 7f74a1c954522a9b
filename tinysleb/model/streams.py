"""Hidden states of all windows on their way up a stack: in memory, or in a file where memory is scarce."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class FileStream:
    """States `[n, T, width]`, float32, in a file; windows are read from it and written to it like a tensor's.

    Plain reads and writes: pages of a mapped file would count as memory of the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], device: torch.device) -> None:
        self.path, self.shape, self.device = path, shape, device
        path.touch()

    def copied_to(self, path: Path) -> FileStream:
        """The same states in another file."""
        shutil.copyfile(self.path, path)
        return FileStream(path, self.shape, self.device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, windows: slice) -> Tensor:
        first, last, _ = windows.indices(len(self))
        _, length, width = self.shape
        count, before = (last - first) * length * width, first * length * width
        values = np.fromfile(self.path, np.float32, count, offset=before * 4)
        return torch.from_numpy(values).view(-1, length, width).to(self.device)

    def __setitem__(self, windows: slice, states: Tensor) -> None:
        first, _, _ = windows.indices(len(self))
        _, length, width = self.shape
        with self.path.open("r+b") as file:
            file.seek(first * length * width * 4)
            file.write(states.float().cpu().contiguous().numpy().data)


Stream = Tensor | FileStream
