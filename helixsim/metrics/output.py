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

TableFormat = Literal["parquet", "csv"]

MANIFEST_SCHEMA = 1
RECORDED_FILES = ("events.csv.gz", "routes.jsonl.gz", "nodes.json")
"""Further files of a run on a real cluster: every pass, every route, the names of the nodes."""

EVENT_COLUMNS = (
    "time_s",
    "query",
    "direction",
    "phase",
    "context_tokens",
    "processed_tokens",
)
"""Columns of ``events.csv.gz``: helixreal writes them, ``helixsim replay`` reads them."""

REPLAY_FILES = (
    "replay.json",
    "replay_series.csv",
    "replay_nodes.csv",
    "replay_requests.csv",
    "replay.png",
)
"""Further files of a replay: the comparison with the recorded run."""

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

    Results are written to a hidden folder within it and moved into place when all of them are
    complete; if that fails, the files that were there before are put back. A context manager:
    leaving it removes unfinished files.

    Parameters
    ----------
    folder
        Created if it does not exist; its parent folder must exist.
    overwrite
        Accept a folder that holds the results of an earlier run and replace them. Other files in
        it are not touched.

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
        """The folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove unfinished files, and the folder if it was created and stayed empty."""
        shutil.rmtree(self._parts, ignore_errors=True)
        if self._is_new:
            with suppress(OSError):
                self.folder.rmdir()  # only if nothing has been written

    def write(
        self,
        summary: Mapping[str, Any],
        tables: Mapping[str, Columns],
        manifest: Mapping[str, Any],
        table_format: TableFormat,
        *,
        more: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write the summary, the tables and the manifest of a run.

        Parameters
        ----------
        summary, tables, manifest
            The parts of a result; see :meth:`helixsim.metrics.result.RunResult.write`.
        table_format
            Format of the tables.
        more
            Further files, name -> contents: :data:`RECORDED_FILES`, :data:`REPLAY_FILES` or
            :data:`TRACE_FILE`.

        Raises
        ------
        OutputError
            If something cannot be written; the files that were there before stay.
        """
        try:
            new, old = self._parts / "new", self._parts / "old"
            new.mkdir()
            old.mkdir()
            for name, columns in tables.items():
                write_table(new / f"{name}.{table_format}", columns, table_format)
            _write_json(new / "summary.json", summary)
            for name, content in (more or {}).items():
                (new / name).write_bytes(content)
            _write_json(new / "manifest.json", manifest)
            self._exchange(new, old)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written: {error.strerror or error}"
            ) from error

    def _exchange(self, new: Path, old: Path) -> None:
        """Move the earlier results out and the new ones in, or nothing at all."""
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
    """Whether a folder holds the manifest of a run."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "scenario_sha256" in found


def build_manifest(
    document: Mapping[str, object], digest: str, seed: int, *, partial: bool
) -> dict[str, Any]:
    """The manifest of a run: scenario, seed, versions, and the time of day.

    Parameters
    ----------
    document, digest
        As in a :class:`~helixsim.scenario.resolved.Scenario`.
    seed
        The seed used.
    partial
        Whether the run was interrupted.
    """
    return {
        "schema": MANIFEST_SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "partial": partial,
        "scenario_sha256": digest,
        "scenario": document,
        "versions": {
            "helixsim": installed_version("helixsim"),
            "python": platform.python_version(),
            **{name: installed_version(name) for name in _LIBRARIES},
        },
    }


def installed_version(name: str) -> str:
    """The version of an installed package, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def json_text(data: Mapping[str, Any]) -> str:
    """The text of ``summary.json`` and of other files of plain data."""
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
