"""Display of values: one line of text, a small HTML table, a picture.

Values of low modules (a placement, a scenario, a result) are drawn by `drawing` and `plots`, which
are above them in the order of imports: these are named here, and imported when a picture is asked
for.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from helixsim.errors import HelixError, InputError
from helixsim.registry import by_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TEXT = 160
MAX_NAMES = 12
"""Most machines that one line of text names."""
MAX_ROWS = 20
"""Longer tables end with the number of the other rows."""


def short_text(kind: str, text: str) -> str:
    """One line for ``repr``: the type and a short description."""
    return f"<{kind} {shorten(text, MAX_TEXT, placeholder=' ...')}>"


def shortened(names: Sequence[str]) -> str:
    """Join names with commas; of many, only the first ones and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def table_html(
    title: str,
    rows: Iterable[Sequence[object]],
    *,
    head: Sequence[str] = (),
    picture: str | None = None,
) -> str:
    """A small table for ``_repr_html_``.

    Parameters
    ----------
    title
        Title above the table.
    rows
        Cells; at most :data:`MAX_ROWS` are shown.
    head
        Names of the columns.
    picture
        HTML after the table.
    """
    all_rows = list(rows)
    parts = [f"<p><b>{escape(title)}</b></p><table>"]
    if head:
        parts.append("<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>")
    for row in all_rows[:MAX_ROWS]:
        cells = "".join(f'<td style="text-align: left">{escape(str(cell))}</td>' for cell in row)
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</table>")
    if len(all_rows) > MAX_ROWS:
        parts.append(f"<p>and {len(all_rows) - MAX_ROWS} more</p>")
    return "".join(parts) + (picture or "")


def placement_image(subject: object) -> str:
    """The picture of a scenario's placement, or of a placement, as an HTML image.

    It is empty where it cannot be drawn.
    """
    try:
        return _image(_drawing(subject))
    except HelixError:
        return ""


def drawing_image(make: str, subject: object) -> str:
    """A drawing of a value as an HTML image; `make` names the function that draws it."""
    return _image(by_path(make)(subject))


def _image(drawing: object) -> str:
    content = by_path("helixsim.drawing.save:drawing_bytes")(drawing, ".svg")
    data = base64.b64encode(content).decode()
    return f'<img style="max-width: 100%" src="data:image/svg+xml;base64,{data}">'


def placement_plot(subject: object) -> Figure:
    """The picture of a scenario's placement with its flow, or of a placement alone.

    Raises
    ------
    PlacementError
        If the scenario has no placement.
    NoRouteError
        If no route leads through all layers.
    """
    return cast("Figure", _drawing(subject).figure)


def _drawing(subject: object) -> Any:  # noqa: ANN401 - a `Drawing`, of a module above this one
    picture = by_path("helixsim.drawing.picture:picture_of")(subject)
    return by_path("helixsim.drawing.placement_figure:placement_figure")(picture)


def result_plot(result: object, name: str | None) -> Figure:
    """A picture of a :class:`~helixsim.metrics.result.RunResult` by its name, or an overview.

    Raises
    ------
    InputError
        If there is no picture of that name, or it needs a trace and there is none.
    """
    if name is None:
        return cast("Figure", by_path("helixsim.plots.pictures:overview")(result))
    names = ("PICTURES", "TRACE_PICTURES")
    pictures = {k: v for n in names for k, v in by_path(f"helixsim.plots.pictures:{n}").items()}
    if name not in pictures:
        raise InputError(f"no picture '{name}'; there are {', '.join(pictures)}", where="plot")
    return cast("Figure", pictures[name](result))
