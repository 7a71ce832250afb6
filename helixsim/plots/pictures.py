"""All pictures by name, and their bytes in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING

from helixsim.metrics.result import RunResult
from helixsim.plots.canvas import style
from helixsim.plots.comparison import comparison
from helixsim.plots.curves import draw_latencies, draw_throughput, latencies, throughput
from helixsim.plots.heat_maps import congestion, kv_use, queues, utilisation
from helixsim.plots.node_timeline import node_timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES: Mapping[str, Callable[[RunResult], Figure]] = {
    "latencies": latencies,
    "throughput": throughput,
    "utilisation": utilisation,
    "kv-use": kv_use,
    "queues": queues,
    "congestion": congestion,
}
"""Name -> picture of one run."""

TRACE_PICTURES: Mapping[str, Callable[[RunResult], Figure]] = {"node-timeline": node_timeline}
"""Name -> picture of one run that was traced."""

_SHARED = {"comparison": comparison, "latencies": latencies, "throughput": throughput}
_DPI = 130


def overview(result: RunResult) -> Figure:
    """Throughput over time above the distributions of latencies."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(11, 7), layout="constrained")
        parts = figure.subfigures(2, 1, squeeze=False)
        draw_throughput(parts[0, 0], result)
        draw_latencies(parts[1, 0], result)
    return figure


def pictures_of(runs: Mapping[str, RunResult]) -> Iterator[tuple[str, Figure]]:
    """All pictures of one run; of several, the comparisons, then the pictures of each run.

    Yields
    ------
    tuple
        A name that can be a file name, and the figure.
    """
    if len(runs) == 1:
        (run,) = runs.values()
        yield from ((name, draw(run)) for name, draw in _pictures_of_one(run).items())
        return
    for name, draw in _SHARED.items():
        yield name, draw(runs)
    for run_name, run in runs.items():
        for name, draw_one in _pictures_of_one(run).items():
            if name not in _SHARED:
                yield f"{run_name}-{name}", draw_one(run)


def _pictures_of_one(run: RunResult) -> Mapping[str, Callable[[RunResult], Figure]]:
    return PICTURES if run.trace is None else {**PICTURES, **TRACE_PICTURES}


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """A figure as the bytes of a file: png, svg or pdf; the same every time."""
    stream = BytesIO()
    metadata = {
        "png": {"Software": "helixsim"},
        "svg": {"Date": None, "Creator": "helixsim"},
        "pdf": {"CreationDate": None, "Creator": "helixsim", "Producer": "helixsim"},
    }[file_format]
    with style():
        figure.savefig(stream, format=file_format, dpi=_DPI, metadata=metadata)
    return stream.getvalue()
