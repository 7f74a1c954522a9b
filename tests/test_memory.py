"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from tinysleb.compute.memory import resident_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes, parse_bytes


def test_amounts() -> None:
    found = {text: parse_bytes(text) for text in ("4GiB", "900MB", "1.5 gib", "512", "2K", "3M", "2TB")}
    assert found == {
        "4GiB": 4 * 2**30, "900MB": 900 * 10**6, "1.5 gib": 3 * 2**29, "512": 512, "2K": 2000,
        "3M": 3 * 10**6, "2TB": 2 * 10**12,
    }  # fmt: skip
    assert format_bytes(3 * 2**29) == "1.5 GiB"
    assert format_bytes(100) == "100 B"


@pytest.mark.parametrize("text", ["", "4 PiB", "-1GiB", "1.2.3MB", "much", "."])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(TinyslebError, match="is not a size"):
        parse_bytes(text)


def test_this_process_holds_something() -> None:
    assert 10**7 < resident_bytes() < 10**11
