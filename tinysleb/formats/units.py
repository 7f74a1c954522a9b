"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from tinysleb.errors import TinyslebError

UNITS = {"": 1} | {
    prefix + binary: (1024 if binary else 1000) ** power
    for power, prefix in enumerate("KMGT", 1)
    for binary in ("", "I")
}


def parse_bytes(text: str) -> int:
    """`4GiB`, `900MB` or a plain number of bytes. Raises TinyslebError for anything else."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or not re.fullmatch(r"\d+\.?\d*|\.\d+", match[1]) or match[2] not in UNITS:
        raise TinyslebError(f"{text!r} is not a size", "write it as 4GiB or 900MB")
    return int(float(match[1]) * UNITS[match[2]])


def format_bytes(count: float) -> str:
    """A size for people: `1.8 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
