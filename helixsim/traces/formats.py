"""The known formats of traces: their names, columns and row functions.

The required columns (or JSON keys) identify a format; other columns are ignored.
To add one, write a row function and add a line to :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from helixsim.traces import fields


class Holds(Enum):
    """Kinds of rows of a format."""

    REQUESTS = "requests with arrival times"
    LENGTHS = "lengths without arrival times"
    SLOTS = "arrivals per slot of time"


Row = tuple[float, int, int]
"""Time in ticks of the format (0 if it has none), prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of trace files.

    Attributes
    ----------
    title
        For messages.
    holds
        Kind of its rows.
    columns
        The required columns, spelled as in the file.
    parse
        Function from the fields of the required columns to a row, or None for a failed request,
        which is left out. Raises `ValueError` for a bad field.
    json
        Whether a row is a JSON object instead of comma-separated values.
    ticks_per_s
        Unit of its times.
    wall_clock
        Whether its times are dates; then the first arrival becomes the start of the trace.
        Otherwise times count from the start of the trace and are not changed.
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
    # The server failed without an answer. The requested length is unknown, and an invented
    # length would distort the load, so the request is left out (and counted).
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
"""Format name -> format."""


def detect(names: Collection[str], *, json: bool) -> Format:
    """Detect the format by its column names, or by the keys of its first JSON object.

    Raises
    ------
    ValueError
        If the columns match no format, or more than one.
    """
    fitting = [f for f in FORMATS.values() if f.json == json and set(f.columns) <= set(names)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError("fits several formats: " + ", ".join(f.title for f in fitting))
    known = "; ".join(f"{f.title}: {', '.join(f.columns)}" for f in FORMATS.values())
    raise ValueError(f"is no known format. Known columns are: {known}")
