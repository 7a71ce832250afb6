"""Draw a placement: a lane for each node along the layers, flow edges between the lanes."""

from __future__ import annotations

from helixsim.drawing.canvas import (
    LEGEND_PITCH,
    Canvas,
    Swatch,
    draw_legend,
    legend_lines,
    line_swatch,
    mark_swatch,
    patch_swatch,
    wrapped,
)
from helixsim.drawing.flow_edges import draw_coordinator, draw_edges
from helixsim.drawing.layer_panels import PANELS_HEIGHT, draw_panels
from helixsim.drawing.picture import Picture
from helixsim.drawing.save import Drawing
from helixsim.drawing.style import (
    BOUND,
    FAINT,
    GRID,
    OTHER_REGION,
    SAME_REGION,
    our_settings,
    tint,
    type_colours,
)
from helixsim.drawing.table import TableLayout, draw_lanes, table_layout, tooltips

_MARGIN = 0.3
_TITLE_SIZE, _TITLE_HEIGHT = 13.0, 0.32
_TEXT_SIZE, _TEXT_PITCH = 9.5, 0.2
_NOTE_SIZE, _NOTE_PITCH = 8.5, 0.18
_UNNAMED = "Lanes are too close to be named; the HTML picture names each lane in its tooltip."


def placement_figure(picture: Picture) -> Drawing:
    """Draw a picture.

    Parameters
    ----------
    picture
        From :func:`~helixsim.drawing.picture.placement_picture` or
        :func:`~helixsim.drawing.picture.bare_picture`.

    Returns
    -------
    Drawing
        To be written with :func:`~helixsim.drawing.save.save_drawing`.
    """
    with our_settings():
        layout = table_layout(picture, _MARGIN)
        inner = layout.width - 2 * _MARGIN
        title = wrapped(picture.title, _TITLE_SIZE * 1.12, inner)  # bold is wider
        caption = [line for text in picture.caption for line in wrapped(text, _TEXT_SIZE, inner)]
        texts = picture.notes if layout.size else (*picture.notes, _UNNAMED)
        notes = [line for text in texts for line in wrapped(text, _NOTE_SIZE, inner)]
        legend = legend_lines(_legend(picture), inner)
        head = (
            0.2
            + len(title) * _TITLE_HEIGHT
            + len(caption) * _TEXT_PITCH
            + 0.12
            + len(legend) * LEGEND_PITCH
            + 0.32
        )
        layout.top = head
        panels_top = layout.bottom + 0.42
        height = panels_top + PANELS_HEIGHT[layout.known] + len(notes) * _NOTE_PITCH + 0.2
        canvas = Canvas(layout.width, height)

        y = 0.2 + _TITLE_HEIGHT / 2
        for line in title:
            canvas.text(_MARGIN, y, line, fontsize=_TITLE_SIZE, fontweight="bold")
            y += _TITLE_HEIGHT
        for line in caption:
            canvas.text(_MARGIN, y, line, fontsize=_TEXT_SIZE)
            y += _TEXT_PITCH
        draw_legend(canvas, _MARGIN, y + 0.06, legend)
        _draw_layers(canvas, picture, layout)
        draw_lanes(canvas, picture, layout)
        if layout.known:
            draw_coordinator(canvas, picture, layout)
            draw_edges(canvas, picture, layout)
        draw_panels(canvas, picture, layout, panels_top)
        y = height - 0.2 - (len(notes) - 0.5) * _NOTE_PITCH
        for number, line in enumerate(notes):
            canvas.text(_MARGIN, y + number * _NOTE_PITCH, line, fontsize=_NOTE_SIZE)
    return Drawing(
        figure=canvas.figure,
        title=picture.title,
        description=" ".join((*picture.caption, *picture.notes)),
        tooltips=tooltips(picture),
    )


def _legend(picture: Picture) -> list[tuple[Swatch, str]]:
    if picture.flow_tokens_per_s is None:
        return []
    colours = type_colours(picture.machine_types)
    used = {lane.first.machine_type for lane in picture.lanes}
    entries = [(patch_swatch(colour), name) for name, colour in colours.items() if name in used]
    entries.append((_half_filled, "dark: share of compute in use"))
    entries.append((line_swatch(SAME_REGION, linewidth=3, alpha=0.55), "flow, wider for more"))
    if any(edge.crosses_regions for edge in picture.edges):
        style = {"linewidth": 3, "alpha": 0.55, "linestyle": (0, (2.2, 0.8))}
        entries.append((line_swatch(OTHER_REGION, **style), "flow between regions"))
    roles = {role for lane in picture.lanes for role in lane.bounds}
    if "compute" in roles:
        outline = patch_swatch(tint(FAINT), edgecolor=BOUND, linewidth=1.8)
        entries.append((outline, "bottleneck"))
    if any(lane.bounds_too for lane in picture.lanes):
        style = {"edgecolor": BOUND, "linewidth": 1.0, "linestyle": (0, (2, 1.2))}
        entries.append((patch_swatch(tint(FAINT), **style), "as tight elsewhere"))
    if roles & {"inbound", "outbound"} or picture.coordinator_bounds:
        entries.append((mark_swatch(), "network interface that bounds"))
    if any(edge.bounds for edge in picture.edges):
        entries.append((line_swatch(BOUND, linewidth=3), "link that bounds"))
    return entries


def _half_filled(canvas: Canvas, x: float, y: float) -> None:
    patch_swatch(tint(FAINT))(canvas, x, y)
    canvas.box(x, y, 0.24, 0.055, facecolor=FAINT)


def _draw_layers(canvas: Canvas, picture: Picture, layout: TableLayout) -> None:
    """Draw vertical lines at round layers, with their numbers below."""
    for layer in layout.layer_ticks(picture.num_layers):
        x = layout.x(layer)
        canvas.line([(x, layout.top), (x, layout.bottom)], color=GRID, linewidth=0.7, zorder=0)
        canvas.text(x, layout.bottom + 0.1, str(layer), fontsize=7.5, color=FAINT, ha="center")
    canvas.text(
        layout.x(picture.num_layers / 2),
        layout.bottom + 0.25,
        "layer",
        fontsize=8,
        color=FAINT,
        ha="center",
    )
