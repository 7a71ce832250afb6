"""Draw planning candidates: decode throughput against decode latency, and the front of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helixsim.drawing.canvas import text_width
from helixsim.drawing.save import Drawing
from helixsim.drawing.style import BOUND, FAINT, GRID, INK, our_settings
from helixsim.errors import InputError

_FRONT, _DOMINATED = "#0072b2", "#b4bac2"
_NUMBERS = ("decode_latency_s_mean", "decode_tokens_per_s")
_WIDTH, _HEIGHT, _AXES_WIDTH = 7.6, 5.2, 6.5
_LABEL_SIZE, _OFFSET, _LINE = 8, 0.12, 0.15
"""Of names: points; from the point, and from line to line, in inches."""

Point = Mapping[str, Any]


def front_figure(
    points: Sequence[Point], *, title: str = "Planning candidates", reference: str | None = None
) -> Drawing:
    """Plot candidates by mean decode latency and decode throughput.

    Parameters
    ----------
    points
        Mappings with the keys ``decode_latency_s_mean`` (seconds), ``decode_tokens_per_s``,
        ``label`` and, if they hold, ``on_front`` and ``chosen``; means over seeds. The keys
        ``decode_latency_s_mean_error`` and ``decode_tokens_per_s_error`` give their standard
        deviations, drawn as bars. Other keys are ignored.
    title
        Over the plot.
    reference
        Label of the point of comparison, such as the current placement.

    Returns
    -------
    Drawing
        To be written with :func:`~helixsim.drawing.save.save_drawing`.

    Raises
    ------
    InputError
        If there are no points, a key is missing, or no point has the label of the reference.
    """
    _check(points, reference)
    with our_settings():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="white")
        axes = figure.add_axes((0.1, 0.11, _AXES_WIDTH / _WIDTH, 0.76))
        front = sorted(_place(point) for point in points if point.get("on_front"))
        _draw_front(axes, front)
        for number, point in enumerate(points):
            _draw_point(axes, number, point, is_reference=point["label"] == reference)
        axes.margins(0.05, 0.1)
        _make_room(axes, points)
        _draw_labels(axes, points, reference)
        axes.set_xlabel("mean decode latency (s)")
        axes.set_ylabel("decode throughput (tokens/s)")
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.text(0.1, 0.945, title, fontsize=13, fontweight="bold", va="center")
        figure.text(0.1, 0.9, _subtitle(points, reference), color=FAINT, va="center")
    return Drawing(
        figure=figure,
        title=title,
        description=_subtitle(points, reference),
        tooltips={f"point-{number}": _tip(point) for number, point in enumerate(points)},
    )


def _check(points: Sequence[Point], reference: str | None) -> None:
    if not points:
        raise InputError("there are no candidates to draw")
    for number, point in enumerate(points):
        for key in (*_NUMBERS, "label"):
            if key not in point:
                raise InputError(f"the key {key} is missing", where=f"points[{number}]")
    labels = [point["label"] for point in points]
    if reference is not None and reference not in labels:
        raise InputError(f"no point is labelled '{reference}', which is to be the reference")


def _place(point: Point) -> tuple[float, float]:
    latency, throughput = (float(point[key]) for key in _NUMBERS)
    return latency, throughput


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """Draw steps: between two points of the front, the faster one's throughput holds."""
    if front:
        xs, ys = zip(*front, strict=True)
        axes.step(xs, ys, where="post", color=_FRONT, linewidth=1.4, alpha=0.6, zorder=1)


def _draw_point(axes: Axes, number: int, point: Point, *, is_reference: bool) -> None:
    style: dict[str, Any] = {"s": 26, "color": _DOMINATED, "zorder": 2}
    if point.get("on_front"):
        style |= {"s": 42, "color": _FRONT, "zorder": 3}
    if is_reference:
        style |= {"s": 64, "marker": "D", "color": INK, "zorder": 4}
    if point.get("chosen"):
        style |= {"s": 190, "marker": "*", "color": BOUND, "zorder": 5}
    latency, throughput = _place(point)
    errors = [float(point.get(f"{key}_error", 0.0)) for key in _NUMBERS]
    if any(error > 0 for error in errors):
        axes.errorbar(
            latency,
            throughput,
            xerr=errors[0],
            yerr=errors[1],
            fmt="none",
            ecolor=style["color"],
            elinewidth=1,
            alpha=0.6,
            zorder=style["zorder"] - 0.5,
        )
    axes.scatter([latency], [throughput], linewidths=0, gid=f"point-{number}", **style)


def _make_room(axes: Axes, points: Sequence[Point]) -> None:
    """Widen the plot to the left, to make room for the first point's name."""
    low, high = axes.get_xlim()
    widths = [text_width(str(p["label"]), _LABEL_SIZE) for p in points if p.get("on_front")]
    room = min(max(widths, default=0.0) + 2 * _OFFSET, _AXES_WIDTH / 3)
    axes.set_xlim(low - (high - low) * room / (_AXES_WIDTH - room), high)


def _draw_labels(axes: Axes, points: Sequence[Point], reference: str | None) -> None:
    """Name the chosen point, the reference and the front, unless names would overlap.

    Names stand above and to the left of the front, where there are no points.
    """
    chosen = [point for point in points if point.get("chosen")]
    known = [point for point in points if point["label"] == reference and point not in chosen]
    front = sorted((point for point in points if point.get("on_front")), key=_place)
    taken: list[tuple[float, float, float, float]] = []
    for point in (*chosen, *known, *(point for point in front if point not in chosen + known)):
        label, beside = str(point["label"]), point in known
        x, y = axes.transData.transform(_place(point)) / axes.figure.dpi
        width = text_width(label, _LABEL_SIZE, bold=point in chosen)
        left = x + _OFFSET if beside else x - _OFFSET - width
        bottom = y - _LINE / 2 if beside else y
        box = (left, bottom, left + width, bottom + _LINE)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        axes.annotate(
            label,
            _place(point),
            xytext=(72 * (left - x), 72 * (bottom - y + _LINE / 2)),
            textcoords="offset points",
            fontsize=_LABEL_SIZE,
            fontweight="bold" if point in chosen else "normal",
            color=BOUND if point in chosen else INK,
            va="center",
            zorder=6,
        )


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _subtitle(points: Sequence[Point], reference: str | None) -> str:
    front = sum(bool(point.get("on_front")) for point in points)
    text = f"{len(points)} candidates, {front} of them on the front"
    if any(point.get(f"{key}_error") for point in points for key in _NUMBERS):
        text += "; bars: one standard deviation"
    chosen = next((point for point in points if point.get("chosen")), None)
    if chosen is not None:
        text += f"; star: chosen, {chosen['decode_tokens_per_s']:,.1f} tokens/s"
    if reference is None:
        return text
    known = next(point for point in points if point["label"] == reference)
    return f"{text}; diamond: {reference}, {known['decode_tokens_per_s']:,.1f} tokens/s"


def _tip(point: Point) -> str:
    latency, throughput = _place(point)
    deviations = [point.get(f"{key}_error") for key in _NUMBERS]
    of_latency, of_throughput = (f" ± {each:.2g}" if each else "" for each in deviations)
    lines = [
        str(point["label"]),
        f"{throughput:,.1f}{of_throughput} decode tokens/s",
        f"{latency:.3f}{of_latency} s a decode",
    ]
    if point.get("chosen"):
        lines.append("chosen")
    if point.get("on_front"):
        lines.append("on the front")
    return "\n".join(lines)
