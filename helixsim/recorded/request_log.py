"""Recordings made of one row for each request: a table of times, or a result of `vllm bench serve`.

docs/replay.md has the formats. The result of a benchmark is read by
:mod:`helixsim.recorded.bench_result`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, isnan, nan
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from helixsim.errors import InputError
from helixsim.traces import fields
from helixsim.traces.text_files import open_lines

LOG_COLUMNS = (
    "request",
    "input_tokens",
    "output_tokens",
    "arrival_s",
    "queued_s",
    "scheduled_s",
    "first_token_s",
    "last_token_s",
)
"""Columns of ``requests.csv``."""

_T = TypeVar("_T")
_REQUIRED = ("input_tokens", "output_tokens", "first_token_s", "last_token_s")


@dataclass(frozen=True, slots=True)
class LogSeries:
    """Requests of a recorded engine over time.

    Attributes
    ----------
    time_s
        Seconds since the first request was queued.
    running, waiting
        Requests that the engine was serving, and that waited to be scheduled.
    """

    time_s: np.ndarray
    running: np.ndarray
    waiting: np.ndarray


@dataclass(frozen=True, slots=True)
class RequestLog:
    """A recording of one row for each request, in the order in which they were sent.

    Attributes
    ----------
    source
        The folder, or the file.
    input_tokens, output_tokens
        Lengths of prompts and answers.
    sent_s, first_token_s, last_token_s
        When each request was queued, and when its first and last token came: seconds since the
        first request was queued; NaN for a token that did not come.
    preemptions
        Preemptions in the recording; None if it does not state them.
    series
        Requests over time; None if they were not recorded.
    about
        Facts about the recorded engine, by name, such as ``model``.
    notes
        Peculiarities of the recording, as sentences.
    """

    source: Path
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    sent_s: np.ndarray
    first_token_s: np.ndarray
    last_token_s: np.ndarray
    preemptions: int | None = None
    series: LogSeries | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder or file."""
        return self.source.resolve().name

    def __len__(self) -> int:
        """Count the requests."""
        return len(self.sent_s)

    @property
    def makespan_s(self) -> float:
        """From the first request to the last token."""
        ends = self.last_token_s[np.isfinite(self.last_token_s)]
        return float(max(ends.max() if len(ends) else 0.0, self.sent_s.max()))


def read_request_table(folder: Path, file: Path) -> RequestLog:
    """Read ``requests.csv``, with ``timeseries.csv`` and ``meta.json`` if they are beside it.

    Raises
    ------
    InputError
        If a file is invalid; the message names file, row and column.
    """
    rows = _request_rows(file)
    if not rows:
        raise InputError("has no requests", file=file)
    skipped = sum(row is None for row in rows)
    kept = [row for row in rows if row is not None]
    if not kept:
        raise InputError("has no request with an answer of at least one token", file=file)
    values = np.array([row[:5] for row in kept], dtype=float)
    values = values[np.argsort(values[:, 2], kind="stable")]
    times = values[:, 2:] - values[0, 2]
    preemptions = [row[5] for row in kept]
    return RequestLog(
        folder,
        values[:, 0].astype(int),
        values[:, 1].astype(int),
        times[:, 0],
        times[:, 1],
        times[:, 2],
        preemptions=None if preemptions[0] is None else sum(each or 0 for each in preemptions),
        series=_series(folder / "timeseries.csv"),
        about=_about(folder / "meta.json"),
        notes=left_out(skipped, len(rows), "its answer has no tokens"),
    )


def left_out(count: int, total: int, reason: str) -> tuple[str, ...]:
    """A note about requests that a recording holds and that cannot be used, if there are any."""
    return (f"{count} of {total} requests left out: {reason}",) if count else ()


_LogRow = tuple[int, int, float, float, float, int | None]


def _request_rows(file: Path) -> list[_LogRow | None]:
    """Lengths, sent, first and last token, preemptions; None for a request without an answer."""
    found: list[_LogRow | None] = []
    for row, cells in _table(file, _REQUIRED):
        if "queued_s" not in cells and "arrival_s" not in cells:
            raise InputError(
                "lacks the column queued_s: when each request was queued; arrival_s can replace it",
                file=file,
                where="row 1",
            )
        sent = "queued_s" if "queued_s" in cells else "arrival_s"
        place = _Place(file, row, cells)
        prompt = place.read("input_tokens", fields.tokens)
        answer = place.read("output_tokens", fields.count)
        times = [place.read(sent, fields.time), *map(place.time, _REQUIRED[2:])]
        place.check_order((sent, *_REQUIRED[2:]), times)
        preempted = place.read("preemptions", fields.count) if "preemptions" in cells else None
        found.append((prompt, answer, times[0], times[1], times[2], preempted) if answer else None)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """A row of a table, with errors that name file, row and column."""

    file: Path
    row: int
    cells: Mapping[str, str]

    def read(self, column: str, convert: Callable[[object], _T]) -> _T:
        try:
            return convert(self.cells[column])
        except ValueError as error:
            raise self._mistake(column, str(error)) from error

    def time(self, column: str) -> float:
        """A time, NaN if the cell is empty: the token did not come."""
        return self.read(column, fields.time) if self.cells[column].strip() else nan

    def check_order(self, columns: tuple[str, ...], times: list[float]) -> None:
        before, latest = columns[0], -inf
        for column, time_s in zip(columns, times, strict=True):
            if time_s < latest:
                raise self._mistake(column, f"{time_s:g} should not be before {before}, {latest:g}")
            if time_s >= latest:
                before, latest = column, time_s
        if isnan(times[1]) and not isnan(times[2]):
            raise self._mistake(columns[1], "is empty, but last_token_s has a time")

    def _mistake(self, column: str, text: str) -> InputError:
        return InputError(text, file=self.file, where=f"row {self.row}, column {column}")


def _table(file: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by column, with their numbers; the header is row 1."""
    with open_lines(file) as lines:
        reader = csv.reader(lines)
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in required if name not in names]
        if missing:
            raise InputError(
                f"lacks the column {missing[0]}; needed are {', '.join(required)}",
                file=file,
                where="row 1",
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"has {len(cells)} values; the header names {len(names)} columns",
                    file=file,
                    where=f"row {reader.line_num}",
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))


def _series(file: Path) -> LogSeries | None:
    if not file.exists():
        return None
    places = [_Place(file, row, cells) for row, cells in _table(file, ("t", "running", "waiting"))]
    if not places:
        return None
    return LogSeries(
        np.array([place.read("t", fields.time) for place in places]),
        np.array([place.read("running", fields.count) for place in places]),
        np.array([place.read("waiting", fields.count) for place in places]),
    )


def _about(file: Path) -> dict[str, str]:
    """The model, the version of the engine and the GPU, as far as ``meta.json`` states them."""
    if not file.exists():
        return {}
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"should be JSON ({error})", file=file) from error
    if not isinstance(data, dict):
        raise InputError("should be an object", file=file)
    hardware = data.get("hardware")
    known = data | (hardware if isinstance(hardware, dict) else {})
    return {
        name: str(known[key])
        for name, key in (("model", "model"), ("vLLM", "vllm_version"), ("GPU", "device_name"))
        if known.get(key)
    }
