"""The formats that people have traces in: what each is called, and how one row reads.

A format is told by the columns (or JSON keys) that it needs; other columns are of no interest.
To add one, write a row function and add a line to :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from helixsim.traces import fields


class Holds(Enum):
    """What the rows of a format are."""

    REQUESTS = "requests with arrival times"
    LENGTHS = "lengths without arrival times"
    SLOTS = "arrivals per slot of time"


Row = tuple[float, int, int]
"""Time in ticks of the format (0 where it has none), prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True)
class Format:
    """How to read one kind of file.

    Attributes
    ----------
    title
        For messages.
    holds
        What its rows are.
    columns
        The columns it needs, spelled as in the file.
    parse
        The fields of those columns -> a row, or None for a request that failed and is left
        out. Raises `ValueError` for a bad field.
    json
        Whether a row is a JSON object instead of comma-separated values.
    ticks_per_s
        Unit of its times.
    wall_clock
        Whether its times are dates, so that the first arrival becomes the start of the trace.
        Otherwise times count from the start of the trace already, and stay.
    """

    title: str
    holds: Holds
    columns: tuple[str, ...]
    parse: Callable[[Sequence[object]], Row | None]
    json: bool = False
    ticks_per_s: int = 1
    wall_clock: bool = False


def _azure(row: Sequence[object]) -> Row:
    stamp, prompt, output = row
    return fields.wall_clock_ns(stamp), fields.tokens(prompt), fields.tokens(output)


def _timed(row: Sequence[object]) -> Row:
    time, prompt, output = row
    return fields.time(time), fields.tokens(prompt), fields.tokens(output)


def _burstgpt(row: Sequence[object]) -> Row | None:
    time, prompt, output = row
    # The server failed and answered nothing. How much it had been asked for is unknown, and a
    # made-up answer would distort the load, so the request is left out (and counted).
    if fields.count(output) == 0:
        return None
    return fields.time(time), fields.tokens(prompt), fields.tokens(output)


def _lengths(row: Sequence[object]) -> Row:
    prompt, output = row
    return 0, fields.tokens(prompt), fields.tokens(output)


def _slots(row: Sequence[object]) -> Row:
    return fields.count(row[0]), 0, 0


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "azure": Format(
            "Azure LLM inference CSV",
            Holds.REQUESTS,
            ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
            _azure,
            ticks_per_s=10**9,
            wall_clock=True,
        ),
        "mooncake": Format(
            "Mooncake JSONL",
            Holds.REQUESTS,
            ("timestamp", "input_length", "output_length"),
            _timed,
            json=True,
            ticks_per_s=1000,
        ),
        "burstgpt": Format(
            "BurstGPT CSV",
            Holds.REQUESTS,
            ("Timestamp", "Request tokens", "Response tokens"),
            _burstgpt,
        ),
        "vidur": Format(
            "Vidur CSV",
            Holds.REQUESTS,
            ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
            _timed,
        ),
        "lengths": Format(
            "length list CSV", Holds.LENGTHS, ("input_tokens", "output_tokens"), _lengths
        ),
        "slot-arrivals": Format("arrivals per slot", Holds.SLOTS, ("arrivals",), _slots),
    }
)
"""Format name -> how to read it."""


def detect(names: Collection[str], *, json: bool) -> Format:
    """Tell the format by its column names, or by the keys of its first JSON object.

    Raises
    ------
    ValueError
        If they are the columns of no format, or of more than one.
    """
    fitting = [f for f in FORMATS.values() if f.json == json and set(f.columns) <= set(names)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError("fits several formats: " + ", ".join(f.title for f in fitting))
    known = "; ".join(f"{f.title}: {', '.join(f.columns)}" for f in FORMATS.values())
    raise ValueError(f"is no format that is known. Known columns are: {known}")
