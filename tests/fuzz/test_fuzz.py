"""Some cases of the fuzzer; `make fuzz CASES=100000` runs more of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = 1500


@pytest.mark.parametrize("first", [0, CASES])
def test_no_file_gets_more_than_an_error_out_of_a_command(first: int) -> None:
    """In a process that has no threads, since it forks."""
    words = [sys.executable, "-m", "fuzz", "--first", str(first), "--cases", str(CASES), "--processes", "1"]
    done = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{CASES} cases" in done.stdout
