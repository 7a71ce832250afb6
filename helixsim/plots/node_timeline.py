"""What each node runs at each moment of a trace: a row for each node, a bar for each step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from helixsim.errors import InputError
from helixsim.metrics.result import RunResult
from helixsim.models.tracing import NodeTrack, TracedStep, node_tracks
from helixsim.plots.canvas import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.patches import Patch

SPAN_S = 3.0
"""What a picture shows of a longer trace."""

_BAR = 0.84
"""Height of a bar; rows are 1 apart."""
_LETTER = 0.0073
"""Width of a letter of a legend, as a share of the axes."""

_CLASSES = (1, 4, 16, 64, 256)
"""The fewest decodes of each shade: the same in all pictures, so that they can be compared."""
_PREFILL = "#a3abb5"
_DECODES = ("#fbd9a0", "#f5ad4c", "#d9720b", "#9a4400", "#4f1d00")
_BOTH = ("#c3e0f5", "#7fbde8", "#2f87c7", "#0b5491", "#06294f")
"""Grey, orange and blue are told apart with any colour vision, and shades by their lightness."""


def node_timeline(
    result: RunResult, *, start_s: float | None = None, span_s: float = SPAN_S
) -> Figure:
    """What each node runs at each moment: a row for each node, in the order of the layers.

    A bar is a step (or a pass, where a step has several). Its colour says whether the step runs
    prefills, decodes or both, its shade how many decodes. The share of time that a node is busy
    stands on the right.

    Parameters
    ----------
    result
        Of a run that was traced: ``simulate(..., trace_span_s=(begin, end))``, or
        ``helixsim run --trace -o DIR``.
    start_s
        Where the picture starts, in seconds since the first request; by default, the middle of the
        trace is in the middle of the picture.
    span_s
        Seconds that it shows.

    Raises
    ------
    InputError
        If the run was not traced, or the trace cannot be read.
    """
    from matplotlib.figure import Figure

    if result.trace is None:
        raise InputError(
            "the run was not traced: add --trace to helixsim run, or trace_span_s=(begin, end) to "
            "simulate()",
            where="node-timeline",
        )
    tracks = sorted(node_tracks(result.trace), key=lambda t: (t.start_layer, t.end_layer, t.node))
    begin_s, end_s = _span(tracks, start_s, span_s)
    with style():
        figure = Figure(figsize=(10, 1.75 + 0.2 * max(len(tracks), 6)), layout="constrained")
        ax = figure.subplots()
        for row, track in enumerate(tracks):
            _draw_row(ax, row, track, begin_s, end_s)
        _note(ax, "busy", -1.0)
        names = [f"{track.node} [{track.start_layer}:{track.end_layer}]" for track in tracks]
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set(xlim=(begin_s, end_s), ylim=(len(names) - 0.4, -0.6))
        ax.set(xlabel="time since the first request, s", ylabel="node [first layer:end]")
        ax.grid(visible=False, axis="y")
        ax.set_axisbelow(True)
        ax.set_title(_title(result), pad=38)
        _add_legends(ax, [s for track in tracks for s in _shown(track, begin_s, end_s)])
    return figure


def _span(tracks: Sequence[NodeTrack], start_s: float | None, span_s: float) -> tuple[float, float]:
    """From when to when the picture goes."""
    if span_s <= 0:
        raise InputError(f"span_s is {span_s!r}; a picture shows a time above 0", where="span_s")
    starts = [step.start_s for track in tracks for step in track.steps]
    if start_s is None:
        middle_s = (min(starts) + max(starts)) / 2 if starts else span_s / 2
        grid_s = span_s / 30  # so that the axis begins at a round time
        start_s = max(round((middle_s - span_s / 2) / grid_s) * grid_s, 0.0)
    return start_s, start_s + span_s


def _shown(track: NodeTrack, begin_s: float, end_s: float) -> list[TracedStep]:
    return [step for step in track.steps if step.end_s > begin_s and step.start_s < end_s]


def _draw_row(ax: Axes, row: int, track: NodeTrack, begin_s: float, end_s: float) -> None:
    steps = _shown(track, begin_s, end_s)
    ax.broken_barh(
        [(step.start_s, step.end_s - step.start_s) for step in steps],
        (row - _BAR / 2, _BAR),
        facecolors=[_colour(step) for step in steps],
        edgecolors="white",
        linewidth=0.25,
    )
    busy_s = sum(min(step.end_s, end_s) - max(step.start_s, begin_s) for step in steps)
    _note(ax, f"{busy_s / (end_s - begin_s):.0%}", row)


def _note(ax: Axes, text: str, row: float) -> None:
    """Write right of a row."""
    ax.annotate(
        text,
        (1, row),
        xycoords=("axes fraction", "data"),
        xytext=(30, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
    )


def _colour(step: TracedStep) -> str:
    if not step.decodes:
        return _PREFILL
    shade = sum(step.decodes >= fewest for fewest in _CLASSES) - 1
    return (_BOTH if step.prompt_tokens else _DECODES)[shade]


def _title(result: RunResult) -> str:
    scheduler = result.manifest.get("scenario", {}).get("scheduler") or {}
    return (
        f"Steps of the nodes: {result.summary['scenario']}, "
        f"preset {scheduler.get('preset', 'tuned')}"
    )


def _add_legends(ax: Axes, steps: Sequence[TracedStep]) -> None:
    """Add what the colours mean, of the kinds of steps that occur."""
    from matplotlib.patches import Patch

    colours = {_colour(step) for step in steps}
    labels = [f"{few}\N{EN DASH}{more - 1}" for few, more in pairwise(_CLASSES)]
    labels.append(f"{_CLASSES[-1]}+")
    kinds = (
        ("prefills only", [_PREFILL], ["no decode"]),
        ("decodes only, number in the step", _DECODES, labels),
        ("decodes and prefills, number of decodes", _BOTH, labels),
    )
    left = 0.0
    for title, shades, names in kinds:
        patches = [
            Patch(color=shade, label=name)
            for shade, name in zip(shades, names, strict=True)
            if shade in colours
        ]
        if patches:
            ax.add_artist(_legend(ax, title, patches, left))
            letters = sum(len(str(patch.get_label())) + 6 for patch in patches)
            left += _LETTER * (max(letters, len(title)) + 3)


def _legend(ax: Axes, title: str, patches: list[Patch], left: float) -> Legend:
    """A legend above the axes, in one line."""
    from matplotlib.legend import Legend

    return Legend(
        ax,
        patches,
        [str(patch.get_label()) for patch in patches],
        title=title,
        loc="lower left",
        bbox_to_anchor=(left, 1.0),
        bbox_transform=ax.transAxes,
        ncols=len(patches),
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        alignment="left",
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.4,
    )
