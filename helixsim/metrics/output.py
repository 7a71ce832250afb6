"""Results as files in a folder: written whole or not at all."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from array import array
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from helixsim.errors import OutputError
from helixsim.metrics.recorder import Columns
from helixsim.metrics.result import RunResult

TableFormat = Literal["parquet", "csv"]

MANIFEST_SCHEMA = 1
_TABLES = ("requests", "nodes", "links", "timeline", "iterations")
_FORMATS = ("parquet", "csv")
_LIBRARIES = ("simpy", "networkx", "numpy", "pyarrow")


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse early what :func:`write_result` would refuse after the run.

    Raises
    ------
    OutputError
        If the folder exists and must not be written to, or cannot be made.
    """
    if folder.exists():
        if not folder.is_dir():
            raise OutputError(f"{folder}: is a file; name a folder")
        if not overwrite:
            raise OutputError(f"{folder}: exists already; name another folder, or add --force")
    elif not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.parent}; make it first")


def write_result(
    result: RunResult, folder: Path, *, table_format: TableFormat, overwrite: bool = False
) -> None:
    """Write a run's summary, tables and manifest.

    Everything is written beside the folder first and moved in at the end. With `overwrite`,
    results of a run before are replaced; other files in the folder stay.

    Raises
    ------
    OutputError
        As :func:`check_folder`, or if something cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    try:
        parts = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
        try:
            _write_json(parts / "summary.json", result.summary)
            _write_json(parts / "manifest.json", manifest(result))
            for name, columns in result.tables.items():
                _write_table(parts / f"{name}.{table_format}", columns, table_format)
            folder.mkdir(exist_ok=True)
            for old in (folder / f"{name}.{suffix}" for name in _TABLES for suffix in _FORMATS):
                old.unlink(missing_ok=True)
            for part in parts.iterdir():
                part.replace(folder / part.name)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


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
            "helixsim": version("helixsim"),
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_table(path: Path, columns: Columns, table_format: TableFormat) -> None:
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
