"""How many threads compute: by affinity, by cgroups as they are mounted, by request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tinysleb.compute import threads
from tinysleb.compute.threads import (
    available_threads,
    cgroup_quota,
    parse_cfs_quota,
    parse_cpu_max,
    use_threads,
)


def mount(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_quotas_as_kernels_write_them() -> None:
    assert parse_cpu_max("max 100000\n") is None
    assert parse_cpu_max("150000 100000\n") == 1.5
    assert parse_cfs_quota("-1\n", "100000\n") is None
    assert parse_cfs_quota("400000\n", "100000\n") == 4


def test_the_least_quota_of_all_cgroups_around_counts(tmp_path: Path) -> None:
    root = mount(
        tmp_path,
        {
            "user.slice/cpu.max": "200000 100000",
            "user.slice/job/cpu.max": "max 100000",
            "other/cpu.max": "50000 100000",
        },
    )
    assert cgroup_quota("0::/user.slice/job/step\n", root) == 2
    assert cgroup_quota("0::/\n", root) is None


def test_the_older_cgroups(tmp_path: Path) -> None:
    """Where a container sees its own cgroup as the root, under the name it has outside."""
    root = mount(tmp_path, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"})
    memberships = "5:memory:/docker/1f2e\n4:cpu,cpuacct:/docker/1f2e\n3:cpuset:/\n0::/\n"
    assert cgroup_quota(memberships, root) == 3
    assert cgroup_quota("3:cpuset:/docker/1f2e\n", root) is None


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2), ("50000", 1), ("max", 4), ("900000", 4)])
def test_no_more_threads_than_the_process_may_use(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2, 4, 6}, raising=False)
    monkeypatch.setattr(threads, "CGROUPS", mount(tmp_path, {"cpu.max": f"{quota} 100000"}))
    monkeypatch.setattr(threads, "MEMBERSHIPS", tmp_path / "memberships")
    (tmp_path / "memberships").write_text("0::/\n")
    assert available_threads() == expected


@pytest.mark.usefixtures("threads_restored")
def test_threads_as_asked_or_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(3)
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(threads, "available_threads", lambda: 2)
    use_threads(None)
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "available_threads", lambda: 64)
    use_threads(None)
    assert torch.get_num_threads() == 2, "torch's own choice is not exceeded"


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_spinning_is_limited_before_torch_is_loaded(given: dict[str, str]) -> None:
    script = (
        "import os, sys\nfrom tinysleb.compute.threads import limit_spinning\nlimit_spinning()\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    expected = given.get("GOMP_SPINCOUNT", threads.SPINS if not given else "None")
    done = subprocess.run(
        [sys.executable, "-c", script], env=without_openmp() | given, capture_output=True, text=True
    )
    assert done.stdout.split() == [expected, "False"]


def without_openmp() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP shows its settings otherwise")
def test_commands_spin_only_briefly(tiny_folder: Path, tmp_path: Path) -> None:
    """OpenMP itself says what it took when it was loaded."""
    command = ["eval", str(tiny_folder), "--tokens", "t.npy", "--threads", "1"]
    np.save(tmp_path / "t.npy", np.ones((1, 8), np.int32))
    done = subprocess.run(
        [sys.executable, "-m", "tinysleb", *command],
        env=without_openmp() | {"OMP_DISPLAY_ENV": "verbose"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{threads.SPINS}'" in done.stderr
