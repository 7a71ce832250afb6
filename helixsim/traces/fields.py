"""Converts one field of a trace file to a number. An invalid field raises `ValueError`.

A field of a CSV file is a string; a field of a JSON file is any JSON value. The
readers catch the `ValueError` and add the file and the row.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

MAX_TOKENS = 100_000_000
"""Above any context length in use; a larger number is an error in the file."""

MAX_TIME = 1e19
"""Longest time in any unit: nanoseconds since 1970 are below it until the year 2286."""

MAX_HASH = 10**18
"""Above the number of any block of a trace."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WALL_CLOCK = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def count(field: object) -> int:
    """Read a whole number, 0 or more."""
    if isinstance(field, str):
        digits = field.strip()
        if digits.isascii() and digits.isdigit() and len(digits.lstrip("0")) <= 9:
            field = int(digits)
    if isinstance(field, bool) or not isinstance(field, int) or not 0 <= field <= MAX_TOKENS:
        raise ValueError(f"{_shown(field)} is not a whole number from 0 to {MAX_TOKENS}")
    return field


def tokens(field: object) -> int:
    """Read a number of tokens, 1 or more."""
    number = count(field)
    if number == 0:
        raise ValueError("0 tokens: a prompt and an answer have at least 1 each")
    return number


def integer(field: object) -> int:
    """Read a whole number, negative or not."""
    if isinstance(field, str):
        text = field.strip()
        sign = text[:1] == "-"
        return -count(text[1:]) if sign else count(text)
    if isinstance(field, int) and not isinstance(field, bool) and abs(field) <= MAX_TOKENS:
        return field
    raise ValueError(f"{_shown(field)} is not a whole number")


def hashes(field: object) -> tuple[int, ...]:
    """Read whole numbers: a list, or text in which they are separated by spaces."""
    found = field
    if isinstance(field, str):
        words = field.split()
        found = [int(word) for word in words if word.isascii() and word.isdigit()]
        if len(found) < len(words):
            found = None
    if not isinstance(found, list) or not all(
        type(each) is int and 0 <= each <= MAX_HASH for each in found
    ):
        raise ValueError(f"{_shown(field)} is not a list of whole numbers from 0 to {MAX_HASH}")
    return tuple(found)


def time(field: object) -> float:
    """Read a time since the start of the trace, in the unit of the file."""
    number = math.nan
    if isinstance(field, str):
        # float() accepts 1_000, which is not a number in traces.
        number = math.nan if "_" in field else _float(field)
    elif isinstance(field, int | float) and not isinstance(field, bool):
        number = field
    if not 0 <= number <= MAX_TIME:
        raise ValueError(f"{_shown(field)} is not a time from 0 to {MAX_TIME:g}")
    # Adding 0.0 turns -0.0 into 0.0.
    return number + 0.0


def wall_clock_ns(field: object) -> int:
    """Read a date and a time of day, such as ``2023-11-16 18:15:46.6805900``.

    Returns
    -------
    int
        Nanoseconds since 1970, exact for up to nine digits after the point. A time without a
        zone (``Z``, ``+02:00``) counts as UTC.
    """
    match = _WALL_CLOCK.fullmatch(field.strip()) if isinstance(field, str) else None
    if match is None:
        raise ValueError(
            f"{_shown(field)} is not a date and time such as 2023-11-16 18:15:46.6805900"
        )
    whole, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(whole + (zone or "Z"))
    except ValueError as error:
        raise ValueError(f"{_shown(field)} is no date and time: {error}") from error
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shown(field: object) -> str:
    text = repr(field)
    return text if len(text) <= 40 else f"{text[:40]}..."
