"""Folders of operator measurements: CSV files to the values of machine files.

The format is that of vLLM's operators as LLMServingSim measures them. Each file is a CSV, plain or
with gzip, of times in microseconds:

.. code-block:: text

    dense         layer,tokens,time_us
    per_sequence  layer,sequences,time_us
    attention     prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
    moe           tokens,activated_experts,time_us                              optional
    skew_fit      pc,kp_label,alpha,n_samples                                   optional
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path

from helixsim.errors import InputError
from helixsim.profiles.measured_grids import (
    Grid,
    attention_grid,
    curve_of,
    expert_grid,
    sum_of_curves,
)
from helixsim.profiles.operators import OperatorCurve

DEFAULT_SKEW = 0.06
"""Skew of decodes without measurements: about the mean of the measured ones."""

_TWICE_A_LAYER = "layernorm"
_ONCE = ("embedding", "final_layernorm")


class OperatorFolder:
    """A folder of measurements.

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

    def dense(self) -> tuple[OperatorCurve, OperatorCurve, OperatorCurve]:
        """Curves of a layer's operators together, of the embedding, and of the final norm."""
        curves = self._curves("dense", "tokens", _ONCE)
        layer = {name: curve for name, curve in curves.items() if name not in _ONCE}
        if not layer:
            raise InputError("has no operators of a layer", file=self._path("dense"))
        weights = {name: 2 if name == _TWICE_A_LAYER else 1 for name in layer}
        return sum_of_curves(layer, weights), curves["embedding"], curves["final_layernorm"]

    def head(self) -> OperatorCurve:
        """Curve of all operators by sequences: the head and the sampler."""
        curves = self._curves("per_sequence", "sequences", ("lm_head",))
        return sum_of_curves(curves, dict.fromkeys(curves, 1))

    def attention(self) -> Grid:
        """Axes and times of the attention table, complete."""
        columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        cells = self._cells("attention", columns)
        try:
            return attention_grid(cells)
        except InputError as error:
            raise InputError(error.message, file=self._path("attention")) from error

    def experts(self) -> Grid:
        """Axes and times of the table of experts, complete."""
        return expert_grid(self._cells("moe", ("tokens", "activated_experts")))

    def decode_skew(self) -> float | None:
        """The weighted median of the skews of decodes alone; None without measurements."""
        if not self.has("skew_fit"):
            return None
        rows = []
        for line, row in self._rows("skew_fit", ("pc", "kp_label", "alpha", "n_samples")):
            if row["pc"] == "0" and row["kp_label"] == "kp=0":
                alpha = self._number("skew_fit", line, row, "alpha")
                rows.append((alpha, self._count("skew_fit", line, row, "n_samples")))
        rows.sort()
        half = sum(weight for _, weight in rows) / 2
        if not half:
            message = "has no rows of decodes alone, with pc 0 and kp_label kp=0"
            raise InputError(message, file=self._path("skew_fit"))
        below = 0
        for alpha, weight in rows:
            below += weight
            if below >= half:
                return min(max(alpha, 0.0), 1.0)
        raise AssertionError("the weights add up to more than half")

    def _curves(self, name: str, axis: str, needed: Iterable[str]) -> dict[str, OperatorCurve]:
        """Operator -> curve."""
        points: dict[str, dict[int, float]] = {}
        for line, row in self._rows(name, ("layer", axis, "time_us")):
            known = points.setdefault(row["layer"], {})
            count = self._count(name, line, row, axis)
            if count in known:
                raise self._error(name, line, axis, f"{row['layer']} at {count} stands here twice")
            known[count] = self._seconds(name, line, row)
        for operator in needed:
            if operator not in points:
                raise InputError(f"has no rows of {operator}", file=self._path(name))
        return {operator: curve_of(known) for operator, known in points.items()}

    def _cells(self, name: str, axes: tuple[str, ...]) -> dict[tuple[int, ...], float]:
        cells: dict[tuple[int, ...], float] = {}
        for line, row in self._rows(name, (*axes, "time_us")):
            point = tuple(self._count(name, line, row, axis) for axis in axes)
            if point in cells:
                raise self._error(name, line, axes[0], f"{point} stands here twice")
            cells[point] = self._seconds(name, line, row)
        return cells

    def _rows(self, name: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
        """(line, column -> text) of each row."""
        file = self._path(name)
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
                        raise self._error(name, reader.line_num, column, "there is no value")
                rows.append((reader.line_num, row))
        except csv.Error as error:
            raise InputError(str(error), file=file, where=f"line {reader.line_num + 1}") from error
        if not rows:
            raise InputError("has no rows", file=file)
        return rows

    def _seconds(self, name: str, line: int, row: Mapping[str, str]) -> float:
        value = self._number(name, line, row, "time_us")
        if value <= 0:
            message = f"must be a time above zero, not {row['time_us']}"
            raise self._error(name, line, "time_us", message)
        return value * 1e-6

    def _number(self, name: str, line: int, row: Mapping[str, str], column: str) -> float:
        try:
            value = float(row[column])
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            message = f"must be a number, not '{row[column][:40]}'"
            raise self._error(name, line, column, message)
        return value

    def _count(self, name: str, line: int, row: Mapping[str, str], column: str) -> int:
        text = row[column].strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            message = f"must be a whole number of at least 0, not '{row[column][:40]}'"
            raise self._error(name, line, column, message)
        return int(text)

    def _error(self, name: str, line: int, column: str, message: str) -> InputError:
        where = f"line {line}, column {column}"
        return InputError(message, file=self._path(name), where=where)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.csv", self.folder / f"{name}.csv.gz"

    def _path(self, name: str) -> Path:
        for path in self._paths(name):
            if path.exists():
                return path
        raise InputError(f"has no {name}.csv (or {name}.csv.gz)", file=self.folder)
