"""Values of a ``config.json``, checked as they are read; errors name the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helixsim.errors import InputError

_LARGEST = 2**31


@dataclass(frozen=True, slots=True)
class ConfigValues:
    """Keys and values of a ``config.json``, or of a mapping in it.

    A value of null means the same as a missing key.

    Attributes
    ----------
    values
        Keys and values.
    file
        The file, for messages.
    prefix
        Place of the mapping in the file, such as ``text_config.``.
    defaults
        Values of keys that are missing.
    """

    values: Mapping[str, object]
    file: str | Path
    prefix: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)

    def get(self, key: str) -> object:
        """A value as it is; None without."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            problem = "this key is missing; it should" if value is None else "must"
            raise self.error(key, f"{problem} be a whole number above zero{_not(value)}")
        return value

    def number(self, key: str, default: int = 0) -> int:
        """A whole number of at least zero."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise self.error(key, f"must be a whole number of at least zero, not {shown(value)}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            problem = "this key is missing; it should" if value is None else "must"
            raise self.error(key, f"{problem} be a number above zero{_not(value)}")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {shown(value)}")
        return default if value is None else value

    def text(self, key: str) -> str | None:
        """A text; None without."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"must be a text, not {shown(value)}")
        return value

    def items(self, key: str) -> list[object] | None:
        """A list; None without."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.error(key, f"must be a list, not {shown(value)}")
        return value

    def below(self, key: str) -> ConfigValues | None:
        """A mapping; None without."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, f"must hold keys and values, not {shown(value)}")
        return ConfigValues(value, self.file, f"{self.prefix}{key}.")

    def error(self, key: str, message: str) -> InputError:
        """An error at a key."""
        return InputError(message, file=self.file, where=f"{self.prefix}{key}")


def _not(value: object) -> str:
    return "" if value is None else f", not {shown(value)}"


def shown(value: object) -> str:
    """A value in a message, at most 60 characters."""
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
