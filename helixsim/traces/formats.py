"""The known formats of traces: their names, columns and row functions.

A format is told by the columns (or JSON keys) that it needs; other columns are of no interest.
Register your own with :func:`helixsim.register_trace_format`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from enum import Enum

from helixsim.registry import Registry, UnknownNameError
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
        Function from the fields of the required columns to a row, or None for a failed request.
        Raises `ValueError` for a bad field. Requests that failed, and rows without prompt tokens or
        output tokens, are left out and counted.
    json
        Whether a row is a JSON object instead of comma-separated values.
    ticks_per_s
        Unit of its times; of a delay too, which is in seconds beside dates.
    wall_clock
        Whether its times are dates; then the first arrival becomes the start of the trace.
        Otherwise times count from the start of the trace and are not changed.
    states_unit
        Whether the name of a column states the unit of times, so that it can be no other.
    time_column
        The column of times, which is empty where a row has a delay instead; none for a format
        without delays.
    is_document
        Whether a file is one JSON document; :mod:`helixsim.traces.documents` reads it, and
        `columns` are the lists in it.
    block_tokens
        Tokens that one of the ``hash_ids`` of a prompt stands for, unless the file says it; see
        :mod:`helixsim.traces.optional_columns`.
    """

    title: str
    holds: Holds
    columns: tuple[str, ...]
    parse: Callable[[Sequence[object]], Row | None]
    json: bool = False
    ticks_per_s: int = 1
    wall_clock: bool = False
    block_tokens: int = 512
    states_unit: bool = False
    time_column: str = ""
    is_document: bool = False


def _azure(row: Sequence[object]) -> Row:
    stamp, prompt, output = row
    return fields.wall_clock_ns(stamp), fields.count(prompt), fields.count(output)


def _timed(row: Sequence[object]) -> Row:
    time, prompt, output = row
    return fields.time(time), fields.count(prompt), fields.count(output)


def _bailian(row: Sequence[object]) -> Row:
    return _timed(row[:3])


def _lengths(row: Sequence[object]) -> Row:
    prompt, output = row
    return 0, fields.count(prompt), fields.count(output)


def _slots(row: Sequence[object]) -> Row:
    return fields.count(row[0]), 0, 0


AZURE = Format(
    "Azure LLM inference CSV",
    Holds.REQUESTS,
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    _azure,
    ticks_per_s=10**9,
    wall_clock=True,
    time_column="TIMESTAMP",
)
MOONCAKE = Format(
    "Mooncake JSONL",
    Holds.REQUESTS,
    ("timestamp", "input_length", "output_length"),
    _timed,
    json=True,
    ticks_per_s=1000,
    time_column="timestamp",
)
BAILIAN = Format(
    "Qwen-Bailian JSONL",
    Holds.REQUESTS,
    ("timestamp", "input_length", "output_length", "chat_id", "parent_chat_id", "turn"),
    _bailian,
    json=True,
    block_tokens=16,
    time_column="timestamp",
)
BURSTGPT = Format(
    "BurstGPT CSV",
    Holds.REQUESTS,
    ("Timestamp", "Request tokens", "Response tokens"),
    _timed,
    time_column="Timestamp",
)
VIDUR = Format(
    "Vidur CSV",
    Holds.REQUESTS,
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    _timed,
    time_column="arrived_at",
)
LLM_SERVING_SIM = Format(
    "LLMServingSim JSONL",
    Holds.REQUESTS,
    ("arrival_time_ns", "input_toks", "output_toks"),
    _timed,
    json=True,
    ticks_per_s=10**9,
    states_unit=True,
    time_column="arrival_time_ns",
)
VLLM_BENCH = Format(
    "vLLM bench result JSON",
    Holds.REQUESTS,
    ("start_times", "input_lens", "output_lens"),
    _timed,
    json=True,
    states_unit=True,
    is_document=True,
)
SHAREGPT = Format(
    "ShareGPT JSON", Holds.LENGTHS, ("conversations",), _lengths, json=True, is_document=True
)
LENGTHS = Format("length list CSV", Holds.LENGTHS, ("input_tokens", "output_tokens"), _lengths)
SLOT_ARRIVALS = Format("arrivals per slot", Holds.SLOTS, ("arrivals",), _slots)

TRACE_FORMATS: Registry[Format] = Registry(
    "trace format",
    "helixsim.trace_formats",
    {
        "azure": "helixsim.traces.formats:AZURE",
        "mooncake": "helixsim.traces.formats:MOONCAKE",
        "bailian": "helixsim.traces.formats:BAILIAN",
        "burstgpt": "helixsim.traces.formats:BURSTGPT",
        "vidur": "helixsim.traces.formats:VIDUR",
        "llmservingsim": "helixsim.traces.formats:LLM_SERVING_SIM",
        "vllm-bench": "helixsim.traces.formats:VLLM_BENCH",
        "sharegpt": "helixsim.traces.formats:SHAREGPT",
        "lengths": "helixsim.traces.formats:LENGTHS",
        "slot-arrivals": "helixsim.traces.formats:SLOT_ARRIVALS",
    },
    attributes=tuple(each.name for each in dataclass_fields(Format)),
)
"""Trace formats by name. Files are told by their columns; a scenario may name the format."""


def register_trace_format(name: str, form: Format) -> None:
    """Let traces of a format be read, and scenarios name it as their `workload.trace_format`.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    TRACE_FORMATS.register(name, form)


def detect(names: Collection[str], *, json: bool) -> Format:
    """Detect the format by its column names, or by the keys of its first JSON object.

    Of several that match, it is the one that needs the columns of all the others, and more.

    Raises
    ------
    ValueError
        If the columns match no format, or more than one.
    """
    known, broken = _known()
    of_rows = [form for form in known if form.json == json and not form.is_document]
    fitting = [form for form in of_rows if set(form.columns) <= set(names)]
    if len(fitting) == 1:
        return fitting[0]
    for form in fitting:
        if all(set(form.columns) > set(other.columns) for other in fitting if other is not form):
            return form
    if fitting:
        raise ValueError("fits several formats: " + ", ".join(form.title for form in fitting))
    columns = "; ".join(f"{form.title}: {', '.join(form.columns)}" for form in known)
    raise ValueError(". ".join((f"is no known format. Known columns are: {columns}", *broken)))


def _known() -> tuple[list[Format], list[str]]:
    """All formats that can be imported; and the errors of the others."""
    known, broken = [], []
    for name in TRACE_FORMATS.names():
        try:
            known.append(TRACE_FORMATS.get(name))
        except UnknownNameError as error:
            broken.append(error.message)
    return known, broken
