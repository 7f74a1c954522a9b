"""Typed access to a mapping of settings, such as `config.json` or a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError

LARGEST_SIZE, LARGEST_REAL = 2**31 - 1, 1e30


class SettingsReader:
    """Typed access to a mapping of settings, and a list of what nobody read."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix
        self.read: set[str] = set()

    def value(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise TinyslebError(f"{self.where} has no `{self.prefix}{key}`")
        return value

    def integer(self, key: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        value = self.value(key, default)
        if isinstance(value, list):  # a GGUF may state it for each block
            if not value or value.count(value[0]) < len(value):
                raise self.not_modelled(key, value, "one value for all blocks")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.not_modelled(key, value, f"a whole number from 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.value(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (0 < value < LARGEST_REAL or value == default):
            raise self.not_modelled(key, value, "a positive number")
        return float(np.float32(value))  # what a GGUF can hold, so that both formats agree

    def switch(self, key: str, default: bool = False) -> bool:
        value = self.value(key, default=default)
        if not isinstance(value, bool):
            raise self.not_modelled(key, value, "true or false")
        return value

    def require(self, key: str, supported: Any, default: Any) -> None:
        value = self.value(key, default)
        if value != supported:
            raise self.not_modelled(key, value, repr(supported))

    def not_modelled(self, key: str, value: Any, supported: str) -> TinyslebError:
        return not_modelled(self.where, self.prefix + key, value, supported)

    def refuse_unread(self, harmless: frozenset[str]) -> None:
        for key, value in self.values.items():
            if key not in self.read and key not in harmless and value not in (0, False, "", [], None):
                per_block = isinstance(value, list) and len(value) == self.values.get("block_count")
                unread = "; with prune --plan, --unknown-arrays says what to do with it" if per_block else ""
                raise self.not_modelled(key, value, f"a model without it{unread}")


def not_modelled(where: str, key: str, value: Any, supported: str) -> TinyslebError:
    """The error for a setting that tinysleb would compute wrongly."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return TinyslebError(
        f"{where}: `{key}` is {shown}, which is not modelled",
        f"supported is {supported}",
    )
