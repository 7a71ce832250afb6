"""Reads a column of whole numbers, such as lengths, from a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from helixsim.errors import TraceError
from helixsim.traces.fields import tokens
from helixsim.traces.text_files import open_lines
from helixsim.yaml_files import did_you_mean


def read_numbers(path: str | Path, column: str | None = None) -> tuple[int, ...]:
    """Read whole numbers, 1 or more, from a CSV file with a header, gzip or not.

    Parameters
    ----------
    path
        The file.
    column
        Name of the column; not needed if there is one only.

    Raises
    ------
    TraceError
        If the file cannot be used, naming the row.
    """
    path = Path(path)
    with open_lines(path) as lines:
        try:
            rows = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(rows, [])]
            place = _place(path, header, column)
            numbers = tuple(_number(path, rows.line_num, row, place) for row in rows if row)
        except csv.Error as error:
            raise TraceError(f"is not CSV: {error}", file=path) from error
    if not numbers:
        raise TraceError("has a header but no rows", file=path)
    return numbers


def _place(path: Path, header: list[str], column: str | None) -> int:
    if not header:
        raise TraceError("the file is empty, or its first line is", file=path)
    if column is None:
        if len(header) > 1:
            raise TraceError(
                f"has {len(header)} columns; name one of them with `column`: {', '.join(header)}",
                file=path,
            )
        return 0
    if column not in header:
        raise TraceError(f"has no column '{column}'; {did_you_mean(column, header)}", file=path)
    return header.index(column)


def _number(path: Path, line: int, row: list[str], place: int) -> int:
    if place >= len(row):
        raise TraceError(
            f"has {len(row)} fields; column {place + 1} is missing", file=path, where=f"row {line}"
        )
    try:
        return tokens(row[place])
    except ValueError as error:
        raise TraceError(str(error), file=path, where=f"row {line}") from error
