"""Write traces and lengths; what is written reads back exactly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from helixsim.requests import SessionTurn
from helixsim.traces.formats import TRACE_FORMATS
from helixsim.traces.optional_columns import OPTIONAL_COLUMNS, SESSION_COLUMNS, written
from helixsim.traces.text_files import write_text
from helixsim.traces.values import Lengths, Trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as Vidur CSV.

    Parameters
    ----------
    trace
        The trace. Times are written in full, so that they read back to the last bit; what prompts
        share, priorities and later turns, as optional columns, if it has any. Of a prefix that
        goes beyond the prompt, into the answer, the part in the prompt is read back.
    path
        The file; gzip if its name ends in ``.gz``. Equal traces give equal bytes.

    Raises
    ------
    InputError
        If a key of what prompts share is not a whole number.
    OutputError
        If the file cannot be written.
    """
    more: tuple[str, ...] = ()
    turns = [turn for request in trace.requests for turn in request.turns]
    if any(turn.prefix is not None or turn.priority for turn in turns):
        more = OPTIONAL_COLUMNS
    has_turns = len(turns) > len(trace)
    if has_turns:
        more = OPTIONAL_COLUMNS + SESSION_COLUMNS
    _write("vidur", _trace_rows(trace, bool(more), has_turns), Path(path), more)


def _trace_rows(trace: Trace, has_more: bool, has_turns: bool) -> Iterable[tuple[str, ...]]:
    for number, request in enumerate(trace.requests):
        for turn in request.turns:
            delay = repr(float(turn.delay_s)) if isinstance(turn, SessionTurn) else ""
            # Through float(), because a NumPy number would be written with its type.
            at = "" if delay else repr(float(request.arrival_s))
            row = [at, str(turn.prompt_tokens), str(turn.output_tokens)]
            if has_more:
                row += written(turn)
            if has_turns:
                session = str(number) if request.later_turns else ""
                row += session, delay
            yield tuple(row)


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
