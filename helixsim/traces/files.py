"""Read trace files of any known format, detected by their content, with or without gzip.

Every reader raises :class:`~helixsim.errors.TraceError` for a file that cannot be used; the message
names the file and, as ``row N``, the line in it, counted from 1 with the header.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

from helixsim.errors import TraceError
from helixsim.traces.documents import read_document
from helixsim.traces.formats import SHAREGPT, Format, Holds
from helixsim.traces.links import can_run, prefixes_of, requests_of
from helixsim.traces.rows import Rows, read_rows
from helixsim.traces.tokenizer import token_counter
from helixsim.traces.unit_check import doubt_of_unit
from helixsim.traces.values import Lengths, Trace

TIME_UNITS = MappingProxyType({"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9})
"""Unit of the times of a file -> how many are a second."""


def read_trace(
    path: str | Path, form: Format | None = None, *, time_unit: str | None = None
) -> Trace:
    """Read requests with their arrival times, in a known format such as Azure's or Mooncake's.

    Parameters
    ----------
    path
        The file.
    form
        Its format; if not given, the columns tell.
    time_unit
        Unit of its times, one of :data:`TIME_UNITS`; that of the format if not given.

    Returns
    -------
    Trace
        In order of arrival. Logs are often written in order of completion, so rows may come in
        any order; requests that arrive together keep the order of the file. Wall-clock times
        (Azure) and times of sending (vLLM) count from the first arrival, other times are not
        changed. Failed requests and rows without prompt tokens or output tokens are left out,
        counted in ``num_skipped`` and told in ``notes``, as is a unit of time that the rate of the
        requests contradicts. What prompts share, priorities, and later turns of sessions come from
        the columns of :mod:`helixsim.traces.optional_columns`.

    Raises
    ------
    TraceError
        If the file is invalid, or its format has another unit of time.
    """
    path = Path(path)
    return _trace(path, _read(path, form), time_unit)


def read_lengths(path: str | Path, tokenizer: str | Path | None = None) -> Lengths:
    """Read lengths of requests: a length list in its order, or a trace in order of arrival.

    Of ShareGPT conversations, each prompt with its answer is one request, whose prompt does not
    contain the turns before it.

    Parameters
    ----------
    path
        The file.
    tokenizer
        Tokenizer that counts the tokens of texts (ShareGPT): a ``tokenizer.json``, or the name of
        a model in the local cache of Hugging Face. If not given, a token is four characters.

    Raises
    ------
    TraceError
        If the file is invalid.
    InputError
        If there is no such tokenizer, or the package for it is not installed.
    """
    path = Path(path)
    count_tokens = None if tokenizer is None else token_counter(str(tokenizer))
    found = _read(path, count_tokens=count_tokens)
    if tokenizer is not None and found.form is not SHAREGPT:
        raise TraceError(f"has numbers of tokens ({found.form.title}), not texts", file=path)
    if found.form.holds is Holds.REQUESTS:
        return _trace(path, found).lengths
    if found.form.holds is not Holds.LENGTHS:
        raise _not(path, found.form, Holds.LENGTHS)
    pairs = tuple(read.row[1:] for read in found.rows if read.row is not None and can_run(read))
    if not pairs:
        raise TraceError(_none_left(found), file=path)
    notes = (*found.notes, *_left_out(path, found))
    if tokenizer is not None:
        notes += (f"{path.name}: lengths are tokens of {tokenizer}",)
    return Lengths(pairs, source=str(path), notes=notes)


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
    found = _read(path)
    if found.form.holds is not Holds.SLOTS:
        raise _not(path, found.form, Holds.SLOTS)
    return tuple(int(read.row[0]) for read in found.rows if read.row is not None)


def _read(
    path: Path, form: Format | None = None, count_tokens: Callable[[str], int] | None = None
) -> Rows:
    return read_document(path, form, count_tokens) or read_rows(path, form)


def _trace(path: Path, found: Rows, time_unit: str | None = None) -> Trace:
    form, rows = found.form, found.rows
    if form.holds is not Holds.REQUESTS:
        raise _not(path, form, Holds.REQUESTS)
    ticks_per_s = _ticks_per_s(path, form, time_unit)
    times = [read.row[0] for read in rows if read.row is not None and read.extra.delay is None]
    requests = requests_of(
        path,
        rows,
        prefixes_of(rows),
        origin=min(times, default=0) if form.wall_clock else 0,
        ticks_per_s=ticks_per_s,
        delay_ticks_per_s=1 if form.wall_clock else ticks_per_s,
    )
    if not requests:
        raise TraceError(_none_left(found), file=path)
    requests.sort(key=attrgetter("arrival_s"))
    notes = (*found.notes, *_left_out(path, found))
    num_skipped = sum(not can_run(read) for read in rows)
    trace = Trace(tuple(requests), source=str(path), num_skipped=num_skipped, notes=notes)
    if form.wall_clock:
        return trace.from_first()  # the row with the first time may be left out
    if time_unit is not None or form.states_unit:
        return trace
    doubt = doubt_of_unit(trace, ticks_per_s)
    return trace if doubt is None else trace.noted(f"{path.name}: {doubt}")


def _ticks_per_s(path: Path, form: Format, time_unit: str | None) -> int:
    if time_unit is None:
        return form.ticks_per_s
    if time_unit not in TIME_UNITS:
        raise TraceError(f"no unit of time '{time_unit}'; known are {', '.join(TIME_UNITS)}")
    if form.wall_clock:
        raise TraceError(f"has dates ({form.title}), so time_unit cannot be {time_unit}", file=path)
    if form.states_unit and TIME_UNITS[time_unit] != form.ticks_per_s:
        own = next(unit for unit, ticks in TIME_UNITS.items() if ticks == form.ticks_per_s)
        raise TraceError(f"has times in {own} ({form.title}), not in {time_unit}", file=path)
    return TIME_UNITS[time_unit]


def _not(path: Path, form: Format, wanted: Holds) -> TraceError:
    hint = ""
    if wanted is Holds.REQUESTS and form.holds is Holds.LENGTHS:
        hint = f" ({form.title}); give it as lengths, beside arrivals"
    return TraceError(f"holds {form.holds.value}, not {wanted.value}{hint}", file=path)


def _left_out(path: Path, found: Rows) -> tuple[str, ...]:
    """A note on rows that cannot be run, if there are any."""
    reasons = _reasons(found)
    if not reasons:
        return ()
    num_left_out = sum(reasons.values())
    causes = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return (f"{path.name}: {num_left_out} of {len(found.rows)} rows left out: {causes}",)


def _none_left(found: Rows) -> str:
    causes = ", ".join(f"{count} {reason}" for reason, count in _reasons(found).items())
    return f"no row of it can be run: {causes}"


def _reasons(found: Rows) -> dict[str, int]:
    """Why rows cannot be run -> their number."""
    reasons: dict[str, int] = {}
    for read in found.rows:
        if can_run(read):
            continue
        if read.row is None:
            reason = "of failed requests"
        else:
            reason = "without output tokens" if read.row[1] else "without prompt tokens"
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons
