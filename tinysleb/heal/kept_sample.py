"""Text that a model wrote, in a file, so that a job that was interrupted need not let it write again."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tinysleb.formats.files import replaced_file


def save_sample(path: Path, windows: Tensor, identity: str) -> None:
    """Write windows `[n, T]`, whole or not at all."""
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, identity=identity, windows=windows.to(torch.int32).numpy())


def load_sample(path: Path, identity: str) -> Tensor | None:
    """The windows in a file, int64; None if there is none, or it is damaged or another job's."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            windows = torch.from_numpy(file["windows"].astype(np.int64))
            return windows if str(file["identity"]) == identity and windows.dim() == 2 else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
