"""From options to a device, a precision and a memory budget, chosen once a command."""

from __future__ import annotations

from tinysleb.commands.options import ComputeOptions
from tinysleb.compute.compute import ALONE, Compute, compute_on
from tinysleb.compute.device import dtype_name
from tinysleb.compute.distributed import Group
from tinysleb.compute.threads import use_threads
from tinysleb.plan import Plan


def choose_compute(options: ComputeOptions, group: Group = ALONE, saved: Plan | None = None) -> Compute:
    """Where to compute, in the precision of the `saved` search or, in a group, the first process's choice."""
    use_threads(options.threads)
    dtype = options.dtype
    if dtype == "auto" and saved is not None:
        dtype = str(saved.settings.get("dtype", dtype))
    compute = compute_on(options.device, dtype, options.memory, group)
    chosen = dtype_name(compute.dtype)
    first = group.same_text(chosen)
    if first in (None, chosen):
        return compute
    return compute_on(options.device, str(first), options.memory, group)
