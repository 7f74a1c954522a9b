"""How many threads compute, and how they wait for each other. Imports torch only where it needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

SPINS = "3000"
"""Sampling took 2.8 s with it on two idle cores (2.6 s spinning for long, 4.1 s asleep), and 8.8 s beside
three busy programs (not done in a minute spinning for long, 7.9 s asleep)."""
MEMBERSHIPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def limit_spinning() -> None:
    """Let threads that wait for each other spin only briefly, unless the user's environment says otherwise.

    GNU's OpenMP, which torch uses on Linux, spins for long by default. On a machine with other programs, one
    thread then burns the time that the thread it waits for needs, at every small product. With `SPINS`, an
    idle machine is about as fast as before, and a busy one about as fast as if threads slept at once. OpenMP
    reads the variable as it is loaded, so this must be called before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def use_threads(count: int | None) -> None:
    """Compute with `count` threads; with None, as many as torch would take, but no more than are available.

    torch by itself takes one a physical core, or OMP_NUM_THREADS, and does not know of a container's quota.
    """
    import torch  # here, so that `limit_spinning` can be imported without it

    torch.set_num_threads(count or min(torch.get_num_threads(), available_threads()))


def available_threads() -> int:
    """The processors that this process may use, by its affinity and the quotas of its cgroups."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    with suppress(OSError):
        quota = cgroup_quota(MEMBERSHIPS.read_text(encoding="utf-8"), CGROUPS)
        cores = cores if quota is None else min(cores, int(quota))
    return max(1, cores)


def cgroup_quota(memberships: str, root: Path) -> float | None:
    """The least of the CPU quotas of a process, in processors; None if there is none.

    `memberships` is the text of its `/proc/PID/cgroup`; `root` is where cgroups are mounted.
    """
    quotas = (_folder_quota(folder) for folder in cgroup_folders(memberships, root))
    return min((quota for quota in quotas if quota is not None), default=None)


def cgroup_folders(memberships: str, root: Path) -> Iterator[Path]:
    """The folders whose quotas hold for a process: its cgroups' and those of all cgroups around them.

    A container may see its own cgroup as the root, under the path that it has outside; then only the root is
    found.
    """
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root
        elif "cpu" in controllers.split(","):
            mount = root / "cpu"
        else:
            continue
        inside = PurePosixPath(path).relative_to("/")
        yield from (mount / parent for parent in (inside, *inside.parents))


def parse_cpu_max(text: str) -> float | None:
    """Processors granted by `cpu.max` of cgroup v2: `max 100000`, or microseconds in each period."""
    granted, period = text.split()
    return None if granted == "max" else int(granted) / int(period)


def parse_cfs_quota(granted: str, period: str) -> float | None:
    """Processors granted by `cpu.cfs_quota_us` and `cpu.cfs_period_us` of cgroup v1; -1 is no limit."""
    return None if int(granted) < 0 else int(granted) / int(period)


def _folder_quota(folder: Path) -> float | None:
    with suppress(OSError):
        return parse_cpu_max((folder / "cpu.max").read_text(encoding="utf-8"))
    with suppress(OSError):
        granted, period = (
            (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
        )
        return parse_cfs_quota(granted, period)
    return None
