"""The ini files of the published artifact, read without evaluating anything.

The artifact evaluates its values as Python. Here, a value is one of four things: a number times
a unit, a whole number, a name, or a flat list of whole numbers and names. Everything else is
refused.
"""

from __future__ import annotations

import configparser
import math
import re
from collections.abc import Iterator
from pathlib import Path

from helixsim.errors import ImportHelixError

MAX_FILE_BYTES = 16_000_000

UNITS = {
    "gbps": 1e9,
    "mbps": 1e6,
    "kbps": 1e3,
    "bps": 1.0,
    "Byte": 1.0,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "Sec": 1.0,
    "MilliSec": 0.001,
    "MicroSec": 1e-6,
}
"""The artifact's constants. Constants that end in "bps" are bytes per second."""

_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?"
_QUANTITY = re.compile(rf"({_NUMBER}) ?\* ?([A-Za-z]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ITEM = rf"(?:[0-9]{{1,9}}|'{_NAME.pattern}'|\"{_NAME.pattern}\")"
_LIST = re.compile(rf"\[ ?(?:{_ITEM}(?: ?, ?{_ITEM})*)? ?\]")


class HelixIni:
    """One ini file of the artifact.

    Raises
    ------
    ImportHelixError
        From every method, naming the file, the section and the key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parser = configparser.ConfigParser(interpolation=None, default_section="")
        self._parser.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            self._parser.read_string(self._read())
        except configparser.Error as error:
            raise self.error(f"no ini file: {' '.join(str(error).split())[:200]}") from error

    def _read(self) -> str:
        try:
            if not self.path.is_file():
                raise self.error("there is no such file")
            with self.path.open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error
        if len(raw) > MAX_FILE_BYTES:
            raise self.error(f"larger than {MAX_FILE_BYTES // 1_000_000} MB")
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error("not UTF-8 text") from error

    def error(
        self, message: str, section: str | None = None, key: str | None = None
    ) -> ImportHelixError:
        """Make an error for a place in this file."""
        where = None if section is None else f"[{section}]" + (f" {key}" if key else "")
        return ImportHelixError(message, file=self.path, where=where)

    def sections(self, pattern: str) -> Iterator[re.Match[str]]:
        """Sections whose whole name matches a pattern, in order of the file."""
        for name in self._parser.sections():
            if match := re.fullmatch(pattern, name, re.ASCII):
                yield match

    def keys(self, section: str) -> list[str]:
        """Keys of a section, in order of the file."""
        if not self._parser.has_section(section):
            raise self.error("this section is missing", section)
        return self._parser.options(section)

    def text(self, section: str, key: str) -> str:
        """A value as it stands in the file, with single spaces."""
        if key not in self.keys(section):
            raise self.error("this key is missing", section, key)
        return " ".join(self._parser.get(section, key).split())

    def name(self, section: str, key: str) -> str:
        """A name, with or without quotes."""
        text = self.text(section, key)
        name = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
        if not _NAME.fullmatch(name):
            raise self._no(text, "name, such as L4", section, key)
        return name

    def whole(self, section: str, key: str) -> int:
        """A whole number of at least zero."""
        text = self.text(section, key)
        if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
            raise self._no(text, "whole number", section, key)
        return int(text)

    def quantity(self, section: str, key: str) -> float:
        """A number times a unit, in seconds, bytes, or bytes per second."""
        text = self.text(section, key)
        match = _QUANTITY.fullmatch(text)
        if match is None or match[2] not in UNITS:
            known = ", ".join(UNITS)
            raise self._no(text, f"quantity, such as 10 * gbps (units: {known})", section, key)
        value = float(match[1]) * UNITS[match[2]]
        if not math.isfinite(value):
            raise self._no(text, "finite quantity", section, key)
        return value

    def positive(self, section: str, key: str) -> float:
        """A quantity above zero."""
        value = self.quantity(section, key)
        if value == 0:
            raise self.error("must be above zero", section, key)
        return value

    def wholes(self, section: str, key: str) -> list[int]:
        """A list of whole numbers."""
        items = self._items(section, key)
        if any(not item.isdigit() for item in items):
            raise self._no(self.text(section, key), "list of whole numbers", section, key)
        return [int(item) for item in items]

    def names(self, section: str, key: str) -> list[str]:
        """A list of names in quotes."""
        items = self._items(section, key)
        if any(item.isdigit() for item in items):
            raise self._no(self.text(section, key), "list of names in quotes", section, key)
        return [item[1:-1] for item in items]

    def _items(self, section: str, key: str) -> list[str]:
        text = self.text(section, key)
        if not _LIST.fullmatch(text):
            raise self._no(text, "flat list, such as [0, 1] or ['a', 'b']", section, key)
        return re.findall(_ITEM, text)

    def _no(self, text: str, expected: str, section: str, key: str) -> ImportHelixError:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return self.error(f"'{shown}' is no {expected}", section, key)
