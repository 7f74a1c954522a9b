"""Typed access to a mapping of settings, such as `config.json` or a GGUF's metadata.

Whatever the program reads of these comes through here: files are untrusted, and every value may be of every
type. A value of the wrong type is a `TinyslebError` that names the file, the key and the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinysleb.errors import TinyslebError, shown

LARGEST_SIZE = 2**31 - 1
SMALLEST_REAL, LARGEST_REAL = 1e-30, 1e30
"""Factors beyond these are mistakes; within them, products of two are numbers in float32."""


class SettingsReader:
    """Typed access to a mapping of settings, and a list of what nobody read.

    A key that is absent, or null, has its default; without one it is an error. `prefix` is what messages put
    before a key. `per_block`: a number may be stated for each block, if it is the same for all.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, prefix: str = "", *, per_block: bool = False
    ) -> None:
        self.values, self.where, self.prefix, self.per_block = values, where, prefix, per_block
        self.read: set[str] = set()

    def value(self, key: str, default: Any = None) -> Any:
        """A value of any type."""
        self.read.add(key)
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise TinyslebError(f"{self.where} has no `{self.prefix}{key}`")
        return value

    def integer(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST_SIZE
    ) -> int:
        """A whole number from `least` to `most`."""
        value = self.value(key, default)
        if self.per_block and isinstance(value, list):
            if not value or value.count(value[0]) < len(value):
                raise self.not_modelled(key, value, "one value for all blocks")
            value = value[0]
        if type(value) is not int or not least <= value <= most:
            raise self.not_modelled(key, value, f"a whole number from {least} to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, as float32 holds it; or `default`, whatever that is."""
        value = self.value(key, default)
        if not _is_number(value) or not (_is_positive(value) or value == default):
            raise self.not_modelled(key, value, "a positive number")
        return float(np.float32(value))  # what a GGUF can hold, so that both formats agree

    def switch(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.value(key, default=default)
        if not isinstance(value, bool):
            raise self.not_modelled(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self.value(key, default)
        if not isinstance(value, str):
            raise self.not_modelled(key, value, "a text")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty if there is none."""
        value = self.value(key, {})
        if not isinstance(value, dict):
            raise self.not_modelled(key, value, "an object")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty if there is none."""
        value = self.value(key, [])
        if not isinstance(value, list) or not set(map(type, value)) <= {str}:
            raise self.not_modelled(key, value, "a list of texts")
        return value

    def integers(self, key: str, *, least: int = 0, most: int = LARGEST_SIZE) -> list[int]:
        """A list of whole numbers from `least` to `most`; empty if there is none."""
        value = self.value(key, [])
        whole = isinstance(value, list) and set(map(type, value)) <= {int}
        if not whole or (value and not (least <= min(value) and max(value) <= most)):
            raise self.not_modelled(key, value, f"a list of whole numbers from {least} to {most}")
        found: list[int] = value
        return found

    def reals(self, key: str) -> list[float]:
        """A list of finite numbers, as float32 holds them; empty if there is none."""
        value = self.value(key, [])
        numbers = isinstance(value, list) and set(map(type, value)) <= {int, float}
        if not numbers or not all(-LARGEST_REAL < item < LARGEST_REAL for item in value):
            raise self.not_modelled(key, value, "a list of finite numbers")
        return [float(item) for item in np.array(value, dtype=np.float32)]

    def positive_reals(self, key: str) -> list[float]:
        """A list of positive numbers, at least one, as float32 holds them."""
        value = self.value(key)
        if not isinstance(value, list) or not value or not all(map(_is_positive, value)):
            raise self.not_modelled(key, value, "a list of positive numbers")
        return [float(item) for item in np.array(value, dtype=np.float32)]

    def token(self, key: str, count: int) -> int | None:
        """The index of one of `count` tokens; None if there is none."""
        if self.values.get(key) is None:
            self.read.add(key)
            return None
        return self.integer(key, least=0, most=count - 1)

    def require(self, key: str, supported: Any, default: Any) -> None:
        """Raise TinyslebError unless the value is `supported`."""
        value = self.value(key, default)
        if value != supported:
            raise self.not_modelled(key, value, repr(supported))

    def not_modelled(self, key: str, value: Any, supported: str) -> TinyslebError:
        """The error for a value that this program does not take."""
        return not_modelled(self.where, self.prefix + key, value, supported)

    def refuse_unread(self, harmless: frozenset[str]) -> None:
        """Raise TinyslebError for a setting that nobody read, unless it is `harmless` or says nothing."""
        for key, value in self.values.items():
            if key not in self.read and key not in harmless and value not in (0, False, "", [], None):
                is_array = self.per_block and isinstance(value, list)
                unknown = "; with prune --plan, --unknown-arrays says what to do with it" if is_array else ""
                raise self.not_modelled(key, value, f"a model without it{unknown}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and SMALLEST_REAL <= value <= LARGEST_REAL


def not_modelled(where: str, key: str, value: Any, supported: str) -> TinyslebError:
    """The error for a setting that tinysleb would compute wrongly."""
    return TinyslebError(
        f"{where}: `{key}` is {shown(value)}, which is not modelled",
        f"supported is {supported}",
    )
