"""Folders of CSV files, plain or with gzip: rows and their checked values."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from helixsim.errors import InputError


class CsvFolder:
    """A folder with files by their names, less ``.csv`` or ``.csv.gz``.

    Raises
    ------
    InputError
        If it does not exist; all methods: if a file is missing or invalid.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError("there is no such folder", file=self.folder)

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return any(path.exists() for path in self._paths(name))

    def rows(self, name: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
        """(line, column -> text) of each row."""
        file = self.path(name)
        try:
            raw = file.read_bytes()
            text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot be read: {reason}", file=file) from error
        except UnicodeDecodeError as error:
            raise InputError("not UTF-8 text", file=file) from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            message = f"has no column {absent[0]}; it should have {', '.join(columns)}"
            raise InputError(message, file=file, where="line 1")
        rows = []
        try:
            for row in reader:
                for column in columns:
                    if row[column] is None:
                        raise self.error(name, reader.line_num, column, "there is no value")
                rows.append((reader.line_num, row))
        except csv.Error as error:
            raise InputError(str(error), file=file, where=f"line {reader.line_num + 1}") from error
        if not rows:
            raise InputError("has no rows", file=file)
        return rows

    def seconds(
        self, name: str, line: int, row: Mapping[str, str], column: str, unit_s: float
    ) -> float:
        """A time above zero in a unit, in seconds."""
        value = self.number(name, line, row, column)
        if value <= 0:
            raise self.error(name, line, column, f"must be a time above zero, not {row[column]}")
        return value * unit_s

    def number(self, name: str, line: int, row: Mapping[str, str], column: str) -> float:
        """A finite number."""
        try:
            value = float(row[column])
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            message = f"must be a number, not '{row[column][:40]}'"
            raise self.error(name, line, column, message)
        return value

    def count(self, name: str, line: int, row: Mapping[str, str], column: str) -> int:
        """A whole number of at least 0."""
        text = row[column].strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            message = f"must be a whole number of at least 0, not '{row[column][:40]}'"
            raise self.error(name, line, column, message)
        return int(text)

    def error(self, name: str, line: int, column: str, message: str) -> InputError:
        """An error that names file, line and column."""
        where = f"line {line}, column {column}"
        return InputError(message, file=self.path(name), where=where)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.csv", self.folder / f"{name}.csv.gz"

    def path(self, name: str) -> Path:
        """The file of this name."""
        for path in self._paths(name):
            if path.exists():
                return path
        raise InputError(f"has no {name}.csv (or {name}.csv.gz)", file=self.folder)
