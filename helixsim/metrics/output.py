"""Results as files in a folder: written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from array import array
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, Self

from helixsim.errors import OutputError
from helixsim.metrics.recorder import Columns
from helixsim.metrics.result import RunResult

TableFormat = Literal["parquet", "csv"]

MANIFEST_SCHEMA = 1
RECORDED_FILES = ("events.csv.gz", "routes.jsonl.gz", "nodes.json")
"""What a run on a real cluster adds: every pass, every route, and who the nodes are."""

REPLAY_FILES = ("replay.json", "replay_series.csv", "replay_nodes.csv", "replay.png")
"""What a replay adds: the side by side with what was recorded."""

TRACE_FILE = "trace.json.gz"
"""A trace of nodes and links, for ui.perfetto.dev."""

_TABLES = ("requests", "nodes", "links", "timeline", "iterations")
_OUR_FILES = (
    "manifest.json",
    "summary.json",
    *RECORDED_FILES,
    *REPLAY_FILES,
    TRACE_FILE,
    *(f"{table}.{suffix}" for table in _TABLES for suffix in ("parquet", "csv")),
)
_LIBRARIES = ("simpy", "networkx", "numpy", "pyarrow")


class OutputFolder:
    """A folder for the results of a run, reserved before the run starts.

    Results are written to a hidden folder beside or in it and moved in when all of them are
    there; if that fails, what was there before is put back. A context manager: leaving it removes
    whatever is half-done.

    Parameters
    ----------
    folder
        Made if it is not there; the folder above must be.
    overwrite
        Accept a folder that holds the results of a run before, to be replaced. Files of
        others are not touched.

    Raises
    ------
    OutputError
        If the folder exists and must not be written to, or cannot be.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        try:
            self._check(overwrite=overwrite)
            self._is_new = not self.folder.exists()
            self.folder.mkdir(exist_ok=True)
            self._parts = Path(mkdtemp(prefix=".helixsim.", dir=self.folder))
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written to: {error.strerror or error}"
            ) from error

    def _check(self, *, overwrite: bool) -> None:
        folder = self.folder
        if not folder.exists():
            if not folder.absolute().parent.is_dir():
                raise OutputError(f"{folder}: there is no folder {folder.parent}; make it first")
            return
        if not folder.is_dir():
            raise OutputError(f"{folder}: is a file; name a folder")
        if not overwrite:
            raise OutputError(f"{folder}: exists already; name another folder, or add --force")
        present = [name for name in _OUR_FILES if os.path.lexists(folder / name)]
        if present and not _holds_results(folder):
            raise OutputError(
                f"{folder}: has a {present[0]} that no run of helixsim put there; name another "
                "folder"
            )
        for name in present:
            if not (folder / name).is_file():
                raise OutputError(f"{folder / name}: is no regular file; name another folder")

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what is half-done, and the folder if it was made for nothing."""
        shutil.rmtree(self._parts, ignore_errors=True)
        if self._is_new:
            with suppress(OSError):
                self.folder.rmdir()  # only if nothing has been written

    def write(
        self,
        result: RunResult,
        table_format: TableFormat,
        *,
        more: Mapping[str, bytes] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run's summary, tables and manifest.

        Parameters
        ----------
        result
            Of the run.
        table_format
            Of the tables.
        more
            Contents of other files: :data:`RECORDED_FILES`, :data:`REPLAY_FILES` or
            :data:`TRACE_FILE`.
        about
            What its manifest says of the real cluster.

        Raises
        ------
        OutputError
            If something cannot be written; what was there before stays.
        """
        try:
            new, old = self._parts / "new", self._parts / "old"
            new.mkdir()
            old.mkdir()
            for name, columns in result.tables.items():
                write_table(new / f"{name}.{table_format}", columns, table_format)
            _write_json(new / "summary.json", result.summary)
            for name, content in (more or {}).items():
                (new / name).write_bytes(content)
            made_of = manifest(result) | ({"real": dict(about)} if about is not None else {})
            _write_json(new / "manifest.json", made_of)
            self._exchange(new, old)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written: {error.strerror or error}"
            ) from error

    def _exchange(self, new: Path, old: Path) -> None:
        """Move the results of before out and the new ones in, or nothing at all."""
        moved: list[tuple[Path, Path]] = []
        try:
            for name in _OUR_FILES:
                if (self.folder / name).exists():
                    moved.append((self.folder / name, old / name))
                    (self.folder / name).rename(old / name)
            for part in sorted(new.iterdir()):
                moved.append((part, self.folder / part.name))
                part.rename(self.folder / part.name)
        except BaseException:
            for source, target in reversed(moved):
                if target.exists() and not source.exists():
                    target.rename(source)
            raise


def _holds_results(folder: Path) -> bool:
    """Whether a folder has the manifest of a run."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "scenario_sha256" in found


def manifest(result: RunResult) -> dict[str, Any]:
    """What a run was made of: scenario, seed, versions; and when."""
    return {
        "schema": MANIFEST_SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": result.seed,
        "partial": result.summary["partial"],
        "scenario_sha256": result.scenario.digest,
        "scenario": result.scenario.document,
        "versions": {
            "helixsim": installed_version("helixsim"),
            "python": platform.python_version(),
            **{name: installed_version(name) for name in _LIBRARIES},
        },
    }


def installed_version(name: str) -> str:
    """Which version of a package there is, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def json_text(data: Mapping[str, Any]) -> str:
    """What stands in ``summary.json``, and in other files of plain data."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json_text(data), encoding="utf-8")


def write_table(path: Path, columns: Columns, table_format: TableFormat) -> None:
    """Write a table into a file of its own; the same table gives the same bytes.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if table_format == "csv":
        _write_csv(path, columns)
    else:
        _write_parquet(path, columns)


def _write_csv(path: Path, columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns.names)
        writer.writerows(
            ["" if value is None or value != value else value for value in row]  # noqa: PLR0124
            for row in zip(*columns.values, strict=True)
        )


def _write_parquet(path: Path, columns: Columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def as_arrow(values: array[float] | list[str | None]) -> pa.Array:
        if isinstance(values, list):
            return pa.array(values, type=pa.string())
        kind = pa.float64() if values.typecode == "d" else pa.int64()
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

    table = pa.table({name: as_arrow(values) for name, values in columns.as_dict().items()})
    pq.write_table(table, path, compression="zstd")
