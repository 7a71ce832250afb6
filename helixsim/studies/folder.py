"""The folder of a sweep: a file for every finished run, tables at the end."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helixsim.errors import OutputError
from helixsim.metrics.output import TableFormat, installed_version, json_text, write_table
from helixsim.metrics.recorder import Columns
from helixsim.output_files import write_whole
from helixsim.studies.combinations import Sweep

_KIND = "sweep-results"
_LIST = "sweep.json"
_TABLES = ("cells", "summary")
_FORMATS = ("parquet", "csv")


class SweepFolder:
    """A folder that keeps the finished runs of a sweep.

    Files are written whole or not at all, so that a sweep can be killed at any time and goes on
    when it is run again. One sweep at a time may use a folder.

    Parameters
    ----------
    folder
        Created if it does not exist; its parent folder must exist. An existing folder must be
        empty or hold a sweep, whose matching results are used.

    Raises
    ------
    OutputError
        If it holds something else, or cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._runs = self.folder / "cells"
        self._check()

    def _check(self) -> None:
        folder = self.folder
        if not folder.exists():
            if not folder.absolute().parent.is_dir():
                raise OutputError(f"{folder}: there is no folder {folder.parent}; make it first")
            return
        if not folder.is_dir():
            raise OutputError(f"{folder}: is a file; name a folder")
        if any(folder.iterdir()) and not _holds_sweep(folder):
            raise OutputError(f"{folder}: holds something other than a sweep; name another folder")

    def start(self, sweep: Sweep) -> None:
        """Write the list of all runs and of their files."""
        runs = [
            {
                "combination": cell.combination,
                "set": dict(cell.values),
                "seed": cell.run.seed,
                "file": f"cells/{cell.run.key}.json",
            }
            for cell in sweep.cells
        ]
        head = {"schema": 1, "kind": _KIND, "scenario": sweep.name}
        versions = {"versions": {"helixsim": installed_version("helixsim")}}
        try:
            self.folder.mkdir(exist_ok=True)
            write_whole(
                self.folder / _LIST, json_text(head | versions | {"cells": runs}), overwrite=True
            )
            self._runs.mkdir(exist_ok=True)
            for left in self._runs.glob(".*.tmp"):  # of a sweep that was killed
                left.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def read(self, key: str) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        try:
            found = json.loads((self._runs / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, summary: dict[str, Any]) -> None:
        """Keep the summary of a run, with the bytes of its ``summary.json``."""
        write_whole(self._runs / f"{key}.json", json_text(summary), overwrite=True)

    def write(self, tables: dict[str, Columns], table_format: TableFormat) -> None:
        """Write the tables, in place of earlier ones."""
        try:
            with TemporaryDirectory(prefix=".helixsim.", dir=self.folder) as parts:
                for name in _TABLES:
                    write_table(Path(parts) / f"{name}.{table_format}", tables[name], table_format)
                for part in sorted(Path(parts).iterdir()):
                    part.replace(self.folder / part.name)
            for name in _TABLES:
                for other in _FORMATS:
                    if other != table_format:
                        with suppress(FileNotFoundError):
                            (self.folder / f"{name}.{other}").unlink()
        except OSError as error:
            raise _cannot_write(self.folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder}: cannot be written to: {error.strerror or error}")


def _holds_sweep(folder: Path) -> bool:
    try:
        found = json.loads((folder / _LIST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == _KIND
