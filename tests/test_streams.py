"""Hidden states in a file, against the same in a tensor."""

from __future__ import annotations

from pathlib import Path

import torch

from tinysleb.model.streams import FileStream


def test_a_file_is_read_and_written_like_a_tensor(tmp_path: Path) -> None:
    wanted = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    stream = FileStream(tmp_path / "a", wanted.shape, wanted.device)
    for first, last in ((3, 7), (0, 3)):
        stream[first:last] = wanted[first:last]
    assert torch.equal(stream[:], wanted)
    copy = stream.copied_to(tmp_path / "b")
    wanted[2:4] *= 2
    copy[2:4] = stream[2:4] * 2
    assert torch.equal(copy[1:6], wanted[1:6])
    assert len(stream) == 7
    assert stream.shape == wanted.shape
    assert not torch.equal(stream[:], wanted)
