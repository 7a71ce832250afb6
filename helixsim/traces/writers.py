"""Write traces and lengths so that they read back exactly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from helixsim.traces.formats import TRACE_FORMATS
from helixsim.traces.textfile import write_text
from helixsim.traces.values import Lengths, Trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as Vidur CSV.

    Parameters
    ----------
    trace
        The trace. Times are written in full, so that they read back to the last bit.
    path
        The file; gzip if its name ends in ``.gz``. Equal traces give equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    # Through float(), because a NumPy number would be written with its type.
    rows = (
        (repr(float(r.arrival_s)), str(r.prompt_tokens), str(r.output_tokens))
        for r in trace.requests
    )
    _write("vidur", rows, Path(path))


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


def _write(format_name: str, rows: Iterable[tuple[str, ...]], path: Path) -> None:
    table = [TRACE_FORMATS.get(format_name).columns, *rows]
    write_text("".join(",".join(row) + "\n" for row in table), path)
