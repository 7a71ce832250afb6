"""Read trace files of any known format, detected by their content, with or without gzip.

Every reader raises :class:`~helixsim.errors.TraceError` for a file that cannot be used; the message
names the file and, as ``row N``, the line in it, counted from 1 with the header.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path

from helixsim.errors import TraceError
from helixsim.requests import TraceRequest
from helixsim.traces.formats import Format, Holds, Row, detect
from helixsim.traces.textfile import open_lines
from helixsim.traces.values import Lengths, Trace


def read_trace(path: str | Path, form: Format | None = None) -> Trace:
    """Read requests with their arrival times: Azure, Mooncake, BurstGPT or Vidur format.

    Parameters
    ----------
    path
        The file.
    form
        Its format; if not given, the columns tell.

    Returns
    -------
    Trace
        In order of arrival. Logs are often written in order of completion, so rows may come in
        any order; requests that arrive together keep the order of the file. Wall-clock times
        (Azure) count from the first arrival, other times are not changed. Failed requests of
        BurstGPT (no response tokens) are left out and counted in ``num_skipped``.

    Raises
    ------
    TraceError
        If the file is invalid.
    """
    path = Path(path)
    return _trace(path, *_read(path, form))


def read_lengths(path: str | Path) -> Lengths:
    """Read lengths of requests: a length list in its order, or a trace in order of arrival.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    TraceError
        If the file is invalid.
    """
    path = Path(path)
    form, rows = _read(path)
    if form.holds is Holds.REQUESTS:
        return _trace(path, form, rows).lengths
    if form.holds is not Holds.LENGTHS:
        raise TraceError(f"holds {form.holds.value}, not {Holds.LENGTHS.value}", file=path)
    return Lengths(tuple((row[1], row[2]) for row in rows if row is not None), source=str(path))


def read_slot_arrivals(path: str | Path) -> tuple[int, ...]:
    """Read the number of arrivals in each slot of time, in order.

    Parameters
    ----------
    path
        A file with the header ``arrivals`` and one whole number per row. It does not contain the
        length of a slot.

    Raises
    ------
    TraceError
        If the file is invalid.
    """
    path = Path(path)
    form, rows = _read(path)
    if form.holds is not Holds.SLOTS:
        raise TraceError(f"holds {form.holds.value}, not {Holds.SLOTS.value}", file=path)
    return tuple(int(row[0]) for row in rows if row is not None)


def _trace(path: Path, form: Format, rows: list[Row | None]) -> Trace:
    if form.holds is not Holds.REQUESTS:
        raise TraceError(f"holds {form.holds.value}, not {Holds.REQUESTS.value}", file=path)
    kept = [row for row in rows if row is not None]
    if not kept:
        raise TraceError("every request in it failed: no response tokens", file=path)
    origin = min(time for time, _, _ in kept) if form.wall_clock else 0
    requests = [TraceRequest((t - origin) / form.ticks_per_s, p, o) for t, p, o in kept]
    requests.sort(key=attrgetter("arrival_s"))
    return Trace(tuple(requests), source=str(path), num_skipped=len(rows) - len(kept))


def _read(path: Path, form: Format | None = None) -> tuple[Format, list[Row | None]]:
    """Read all rows of a file; at least one."""
    with open_lines(path) as lines:
        first = next(lines, None)
        if first is None or not first.strip():
            raise TraceError("the file is empty, or its first line is", file=path)
        open_table = _json_table if first.lstrip().startswith("{") else _csv_table
        found, table = open_table(path, first, lines, form)
        parse = found.parse
        rows: list[Row | None] = []
        for number, fields in table:
            try:
                rows.append(parse(fields))
            except ValueError as error:
                raise _row_error(path, number, str(error)) from error
    if not rows:
        raise TraceError("has a header but no rows", file=path)
    return found, rows


_Table = Iterator[tuple[int, Sequence[object]]]
"""Line number in the file, and the fields of the required columns."""


def _csv_table(
    path: Path, first: str, lines: Iterator[str], form: Format | None
) -> tuple[Format, _Table]:
    # Quotes that do not close would swallow the rest of the file without `strict`.
    reader = csv.reader(chain([first], lines), strict=True, skipinitialspace=True)
    cells = _csv_rows(path, reader)
    header = [name.strip() for name in next(cells)]
    form = _checked(path, header, form) or _detect(path, header, as_json=False)
    if repeated := [name for name in form.columns if header.count(name) > 1]:
        raise _row_error(path, 1, f"duplicate column {repeated[0]}")
    wanted = [header.index(name) for name in form.columns]

    def table() -> _Table:
        for row in cells:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                raise _row_error(
                    path, reader.line_num, f"has {len(row)} columns, the header {len(header)}"
                )
            yield reader.line_num, [row[column] for column in wanted]

    return form, table()


def _csv_rows(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        number: int = reader.line_num  # type: ignore[attr-defined]
        raise _row_error(path, number, f"is no comma-separated row: {error}") from error


def _json_table(
    path: Path, first: str, lines: Iterator[str], given: Format | None
) -> tuple[Format, _Table]:
    keys = _json_object(path, 1, first)
    form = _checked(path, keys, given) or _detect(path, keys, as_json=True)

    def table() -> _Table:
        for number, line in enumerate(chain([first], lines), start=1):
            if not line.strip():
                continue
            row = _json_object(path, number, line)
            if missing := [name for name in form.columns if name not in row]:
                raise _row_error(path, number, f"has no {missing[0]}")
            yield number, [row[name] for name in form.columns]

    return form, table()


def _json_object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    # Nesting thousands deep ends in a RecursionError.
    except (ValueError, RecursionError) as error:
        raise _row_error(path, number, f"is no JSON object: {error}") from error
    if not isinstance(value, dict):
        raise _row_error(path, number, f"is no JSON object but a {type(value).__name__}")
    return value


def _checked(path: Path, names: Collection[str], form: Format | None) -> Format | None:
    """See that a file has the columns of the format that it is said to have."""
    if form is not None and (missing := [name for name in form.columns if name not in names]):
        raise _row_error(path, 1, f"has no {missing[0]}, which {form.title} needs")
    return form


def _detect(path: Path, names: Sequence[str] | dict[str, object], *, as_json: bool) -> Format:
    try:
        return detect(names, json=as_json)
    except ValueError as error:
        raise _row_error(path, 1, str(error)) from error


def _row_error(path: Path, number: int, message: str) -> TraceError:
    return TraceError(message, file=path, where=f"row {number}")
