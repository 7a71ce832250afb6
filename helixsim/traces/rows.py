"""The rows of a trace file: lines of CSV or JSON, read with what they may say besides.

Errors name the file and, as ``row N``, the line in it, counted from 1 with the header.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from helixsim.errors import TraceError
from helixsim.traces.formats import Format, Holds, Row, detect
from helixsim.traces.optional_columns import (
    DELAY,
    LINK_COLUMNS,
    NOTHING,
    READ_COLUMNS,
    Extra,
    read_extra,
)
from helixsim.traces.text_files import open_lines


class ReadRow(NamedTuple):
    """A row of a file.

    Attributes
    ----------
    row
        Time, prompt tokens, output tokens; None for a failed request.
    extra
        What its optional columns say; if that is a delay, the row has no time.
    place
        Where it is in the file, such as ``row 3``.
    """

    row: Row | None
    extra: Extra
    place: str


class Rows(NamedTuple):
    """The rows of a file, its format, and what is to be known of it, as sentences."""

    form: Format
    rows: list[ReadRow]
    notes: tuple[str, ...] = ()


def read_rows(path: Path, form: Format | None = None) -> Rows:
    """Read all rows of a file of lines; at least one.

    Parameters
    ----------
    path
        The file.
    form
        Its format; if not given, the columns tell.

    Raises
    ------
    TraceError
        If the file is invalid.
    """
    with open_lines(path) as lines:
        first = next(lines, None)
        if first is None or not first.strip():
            raise TraceError("the file is empty, or its first line is", file=path)
        open_table = _json_table if first.lstrip().startswith("{") else _csv_table
        found, table = open_table(path, first, lines, form)
        rows: list[ReadRow] = []
        for number, fields, more in table:
            try:
                rows.append(parsed(found, fields, more, f"row {number}"))
            except ValueError as error:
                raise row_error(path, number, str(error)) from error
    if not rows:
        raise TraceError("has a header but no rows", file=path)
    return Rows(found, rows)


def parsed(
    form: Format, fields: Sequence[object], more: Mapping[str, object], place: str
) -> ReadRow:
    """Read the required fields and the optional columns of a row.

    Raises
    ------
    ValueError
        If a field is invalid.
    """
    extra = read_extra(more, form.block_tokens) if more else NOTHING
    if extra.delay is None:
        return ReadRow(form.parse(fields), extra, place)
    if not _is_missing(fields[form.columns.index(form.time_column)]):
        # A recorded time counts, whatever the delay was.
        return ReadRow(form.parse(fields), extra._replace(delay=None), place)
    no_time = "1970-01-01 00:00:00" if form.wall_clock else 0
    whole = [
        no_time if name == form.time_column else field
        for name, field in zip(form.columns, fields, strict=True)
    ]
    return ReadRow(form.parse(whole), extra, place)


def _is_missing(field: object) -> bool:
    return field is None or (isinstance(field, str) and not field.strip())


_Table = Iterator[tuple[int, Sequence[object], Mapping[str, object]]]
"""Line number in the file, the fields of the required columns, and optional columns by name."""


def _optional_columns(form: Format, names: Collection[str]) -> list[str]:
    """The optional columns that a file has and its format does not read itself."""
    if form.holds is not Holds.REQUESTS:
        return []
    own = set(form.columns) - set(LINK_COLUMNS)
    found = [name for name in READ_COLUMNS if name in names and name not in own]
    return [name for name in found if name != DELAY or form.time_column]


def _csv_table(
    path: Path, first: str, lines: Iterator[str], form: Format | None
) -> tuple[Format, _Table]:
    # Quotes that do not close would swallow the rest of the file without `strict`.
    reader = csv.reader(chain([first], lines), strict=True, skipinitialspace=True)
    cells = _csv_rows(path, reader)
    header = [name.strip() for name in next(cells)]
    form = _checked(path, header, form) or _detect(path, header, as_json=False)
    if repeated := [name for name in form.columns if header.count(name) > 1]:
        raise row_error(path, 1, f"duplicate column {repeated[0]}")
    wanted = [header.index(name) for name in form.columns]
    optional = {name: header.index(name) for name in _optional_columns(form, header)}

    def table() -> _Table:
        for row in cells:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                raise row_error(
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
        raise row_error(path, number, f"is no comma-separated row: {error}") from error


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
            may_lack = form.time_column if row.get(DELAY) is not None else ""
            if missing := [name for name in form.columns if name not in row and name != may_lack]:
                raise row_error(path, number, f"has no {missing[0]}")
            more = {name: row[name] for name in _optional_columns(form, row)}
            yield number, [row.get(name) for name in form.columns], more

    return form, table()


def _json_object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    # Nesting thousands deep ends in a RecursionError.
    except (ValueError, RecursionError) as error:
        raise row_error(path, number, f"is no JSON object: {error}") from error
    if not isinstance(value, dict):
        raise row_error(path, number, f"is no JSON object but a {type(value).__name__}")
    return value


def _checked(path: Path, names: Collection[str], form: Format | None) -> Format | None:
    """See that a file has the columns of the format that it is said to have."""
    if form is None:
        return None
    if form.is_document:
        raise TraceError(f"is not one JSON document, as {form.title} is", file=path)
    if missing := [name for name in form.columns if name not in names]:
        raise row_error(path, 1, f"has no {missing[0]}, which {form.title} needs")
    return form


def _detect(path: Path, names: Sequence[str] | dict[str, object], *, as_json: bool) -> Format:
    try:
        return detect(names, json=as_json)
    except ValueError as error:
        raise row_error(path, 1, str(error)) from error


def row_error(path: Path, number: int, message: str) -> TraceError:
    """An error in a line of a file."""
    return TraceError(message, file=path, where=f"row {number}")
