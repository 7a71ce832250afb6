"""Read trace files of any known format, detected by their content, with or without gzip.

Every reader raises :class:`~helixsim.errors.TraceError` for a file that cannot be used; the message
names the file and, as ``row N``, the line in it, counted from 1 with the header.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, cast

from helixsim.errors import OutputError, TraceError
from helixsim.requests import TraceRequest
from helixsim.traces.formats import TRACE_FORMATS, Format, Holds, Row, detect
from helixsim.traces.optional_columns import (
    NOTHING,
    OPTIONAL_COLUMNS,
    Extra,
    read_extra,
    shared_prefixes,
    written,
)
from helixsim.traces.values import Lengths, Trace

MAX_LINE_CHARS = 1_000_000
"""Above the length of any row of a trace; other files soon exceed it."""

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[str]]:
    """Open a text file, gzip or not by its first bytes, and yield its lines.

    A byte-order mark and any kind of line end are removed. Bytes that are not UTF-8 become
    U+FFFD: they are refused in required columns, with their row, and tolerated in others.

    Raises
    ------
    TraceError
        If the file cannot be read, is a damaged gzip, or has a line that is too long.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP_MAGIC
            binary = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="replace") as text:
                yield _lines(text, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"the gzip file is cut short or damaged: {error}", file=path) from error
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror or error}", file=path) from error


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS:
            raise TraceError(
                f"is longer than {MAX_LINE_CHARS} characters: no trace file",
                file=path,
                where=f"row {number}",
            )
        yield line.rstrip("\n")


def write_text(text: str, path: Path) -> None:
    """Write text, as gzip if the name ends in ``.gz``; equal text gives equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    data = text.encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        # Without a name and a time in its header, the file depends only on the text.
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
            packed.write(data)
        data = buffer.getvalue()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_trace(path: str | Path, form: Format | None = None) -> Trace:
    """Read requests with their arrival times, in a known format such as Azure's or Mooncake's.

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
        BurstGPT (no response tokens) are left out and counted in ``num_skipped``. What prompts
        share, and priorities, come from the columns of :mod:`helixsim.traces.optional_columns`.

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
    return Lengths(tuple(row[1:] for row, _ in rows if row is not None), source=str(path))


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
    return tuple(int(row[0]) for row, _ in rows if row is not None)


_Read = tuple["Row | None", Extra]
"""A row, None if it is left out, and what its optional columns say."""


def _trace(path: Path, form: Format, rows: list[_Read]) -> Trace:
    if form.holds is not Holds.REQUESTS:
        raise TraceError(f"holds {form.holds.value}, not {Holds.REQUESTS.value}", file=path)
    kept = [(row, extra) for row, extra in rows if row is not None]
    if not kept:
        raise TraceError("every request in it failed: no response tokens", file=path)
    origin = min(row[0] for row, _ in kept) if form.wall_clock else 0
    prefixes = shared_prefixes([extra for _, extra in kept], (row[1] for row, _ in kept))
    requests = [
        TraceRequest((t - origin) / form.ticks_per_s, p, o, prefix, extra.priority)
        for ((t, p, o), extra), prefix in zip(kept, prefixes, strict=True)
    ]
    requests.sort(key=attrgetter("arrival_s"))
    return Trace(tuple(requests), source=str(path), num_skipped=len(rows) - len(kept))


def _read(path: Path, form: Format | None = None) -> tuple[Format, list[_Read]]:
    """Read all rows of a file; at least one."""
    with open_lines(path) as lines:
        first = next(lines, None)
        if first is None or not first.strip():
            raise TraceError("the file is empty, or its first line is", file=path)
        open_table = _json_table if first.lstrip().startswith("{") else _csv_table
        found, table = open_table(path, first, lines, form)
        parse = found.parse
        rows: list[_Read] = []
        for number, fields, more in table:
            try:
                extra = read_extra(more, found.block_tokens) if more else NOTHING
                rows.append((parse(fields), extra))
            except ValueError as error:
                raise _row_error(path, number, str(error)) from error
    if not rows:
        raise TraceError("has a header but no rows", file=path)
    return found, rows


_Table = Iterator[tuple[int, Sequence[object], Mapping[str, object]]]
"""Line number in the file, the fields of the required columns, and optional columns by name."""


def _optional_columns(form: Format, names: Collection[str]) -> list[str]:
    """The optional columns that a file has and its format does not read itself."""
    if form.holds is not Holds.REQUESTS:
        return []
    return [name for name in OPTIONAL_COLUMNS if name in names and name not in form.columns]


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
    optional = {name: header.index(name) for name in _optional_columns(form, header)}

    def table() -> _Table:
        for row in cells:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                raise _row_error(
                    path, reader.line_num, f"has {len(row)} columns, the header {len(header)}"
                )
            more = {name: row[column].strip() for name, column in optional.items()}
            yield reader.line_num, [row[column] for column in wanted], more

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
            more = {name: row[name] for name in _optional_columns(form, row)}
            yield number, [row[name] for name in form.columns], more

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


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as Vidur CSV.

    Parameters
    ----------
    trace
        The trace. Times are written in full, so that they read back to the last bit; what prompts
        share, and priorities, as optional columns, if it has any.
    path
        The file; gzip if its name ends in ``.gz``. Equal traces give equal bytes.

    Raises
    ------
    InputError
        If a key of what prompts share is not a whole number.
    OutputError
        If the file cannot be written.
    """
    # Through float(), because a NumPy number would be written with its type.
    has_more = any(r.prefix is not None or r.priority for r in trace.requests)
    rows = (
        (
            repr(float(r.arrival_s)),
            str(r.prompt_tokens),
            str(r.output_tokens),
            *(written(r) if has_more else ()),
        )
        for r in trace.requests
    )
    _write("vidur", rows, Path(path), OPTIONAL_COLUMNS if has_more else ())


def write_lengths(lengths: Lengths, path: str | Path) -> None:
    """Write lengths as a length list (``input_tokens,output_tokens``), in their order.

    Parameters
    ----------
    lengths
        The lengths.
    path
        The file; gzip if its name ends in ``.gz``. Equal lengths give equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    _write("lengths", ((str(prompt), str(output)) for prompt, output in lengths.pairs), Path(path))


def _write(
    format_name: str, rows: Iterable[tuple[str, ...]], path: Path, more: tuple[str, ...] = ()
) -> None:
    table = [TRACE_FORMATS.get(format_name).columns + more, *rows]
    write_text("".join(",".join(row) + "\n" for row in table), path)
