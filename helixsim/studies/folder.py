"""The folder of a study, a sweep or a capacity search: a file for every finished run."""

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

_KINDS = {"sweep": "sweep-results", "capacity": "capacity-results"}
_TABLES = ("cells", "summary")
_FORMATS = ("parquet", "csv")


class StudyFolder:
    """A folder that keeps the finished runs of a study.

    Files are written whole or not at all, so that a study can be killed at any time and goes on
    when it is run again. One study at a time may use a folder.

    Parameters
    ----------
    folder
        Created if it does not exist; its parent folder must exist. An existing folder must be
        empty or hold a study of this kind, whose matching results are used.
    study
        ``sweep`` or ``capacity``.

    Raises
    ------
    OutputError
        If it holds something else, or cannot be written to.
    """

    def __init__(self, folder: str | Path, study: str) -> None:
        self.folder = Path(folder)
        self._study = study
        self._list = f"{study}.json"
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
        if any(folder.iterdir()) and not self._holds_study():
            what = {"sweep": "a sweep", "capacity": "a capacity search"}[self._study]
            raise OutputError(f"{folder}: holds something other than {what}; name another folder")

    def _holds_study(self) -> bool:
        try:
            found = json.loads((self.folder / self._list).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("kind") == _KINDS[self._study]

    def begin(self, content: dict[str, Any]) -> None:
        """Make the folder, and write what the study is."""
        head = {"schema": 1, "kind": _KINDS[self._study]}
        try:
            self.folder.mkdir(exist_ok=True)
            write_whole(self.folder / self._list, json_text(head | content), overwrite=True)
            self._runs.mkdir(exist_ok=True)
            for left in self._runs.glob(".*.tmp"):  # of a study that was killed
                left.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def read(self, key: str) -> dict[str, Any] | None:
        """What was kept of a finished run, or None."""
        try:
            found = json.loads((self._runs / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, content: dict[str, Any]) -> None:
        """Keep something of a finished run."""
        write_whole(self._runs / f"{key}.json", json_text(content), overwrite=True)


class SweepFolder(StudyFolder):
    """The folder of a sweep: the summaries of its runs, and tables at the end.

    Raises
    ------
    OutputError
        As :class:`StudyFolder`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "sweep")

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
        versions = {"versions": {"helixsim": installed_version("helixsim")}}
        self.begin({"scenario": sweep.name} | versions | {"cells": runs})

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
