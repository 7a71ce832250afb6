"""Draw an explanation: how busy and how full each node is, and what changes would give."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.drawing.canvas import (
    LEGEND_PITCH,
    Canvas,
    Swatch,
    column_head,
    draw_legend,
    legend_lines,
    line_swatch,
    patch_swatch,
    text_width,
    wrapped,
)
from helixsim.drawing.captions import common_prefix, short_name
from helixsim.drawing.save import Drawing
from helixsim.drawing.style import BOUND, FAINT, GRID, INK, PLAIN, our_settings, tint, type_colours
from helixsim.placement.cut_text import count_text
from helixsim.studies.explain_measures import NodeUse, layers_text
from helixsim.studies.explain_result import Explanation, Finding, WhatIf
from helixsim.studies.explain_text import figures_text, gain_text, limit_texts, worthwhile

_WIDTH, _MARGIN = 11.4, 0.3
_PITCH, _SIZE = 0.205, 8.5
_TITLE_SIZE, _TITLE_HEIGHT = 13.0, 0.32
_TEXT_SIZE, _TEXT_PITCH = 9.0, 0.19
_GAP = 0.16
_MOST_NODES = 60
"""Of more nodes, the busiest and fullest are drawn."""
_MOST_FINDINGS = 6
_GAIN_WIDTH = 3.2
_NODE_KINDS = ("kv", "compute")
"""Kinds of findings that mark the nodes concerned."""
_SIMULATED = "#0072b2"


@dataclass(frozen=True, slots=True)
class _Row:
    """A node with the colour of its type."""

    node: NodeUse
    label: str
    colour: str
    bounds: tuple[str, ...]


def explanation_figure(explanation: Explanation) -> Drawing:
    """Draw an explanation.

    Returns
    -------
    Drawing
        To be written with :func:`~helixsim.drawing.save.save_drawing`.
    """
    with our_settings():
        inner = _WIDTH - 2 * _MARGIN
        texts = [each.text for each in explanation.findings[:_MOST_FINDINGS]]
        texts += limit_texts(explanation)
        caption = [wrapped(text, _TEXT_SIZE, inner - 0.15) for text in texts]
        rows = _rows(explanation)
        legend = legend_lines(_legend(explanation, rows), inner)
        shown = worthwhile(explanation)
        notes = _notes(explanation, len(rows))
        note_lines = [line for note in notes for line in wrapped(note, _SIZE, inner)]
        head = 0.2 + 2 * _TITLE_HEIGHT + sum(map(len, caption)) * _TEXT_PITCH + 0.1
        top = head + len(legend) * LEGEND_PITCH + 0.4
        changes_top = top + len(rows) * _PITCH + (0.75 if shown else 0.2)
        bottom = changes_top + _changes_height(shown, inner)
        canvas = Canvas(_WIDTH, bottom + len(note_lines) * _TEXT_PITCH + 0.2)
        title = f"{explanation.scenario}: what binds"
        y = 0.2 + _TITLE_HEIGHT / 2
        canvas.text(_MARGIN, y, title, fontsize=_TITLE_SIZE, fontweight="bold")
        canvas.text(
            _MARGIN, y + _TITLE_HEIGHT * 0.9, figures_text(explanation.figures), color=FAINT
        )
        _draw_caption(canvas, caption, y + 1.8 * _TITLE_HEIGHT)
        draw_legend(canvas, _MARGIN, head + 0.06, legend)
        _draw_nodes(canvas, rows, top, explanation.measures.kv_limit)
        if shown:
            _draw_changes(canvas, explanation, shown, changes_top)
        for number, line in enumerate(note_lines):
            canvas.text(_MARGIN, bottom + (number + 0.5) * _TEXT_PITCH, line, fontsize=_SIZE)
    return Drawing(
        figure=canvas.figure,
        title=title,
        description=" ".join(texts),
        tooltips=_tooltips(rows, shown),
    )


def _rows(explanation: Explanation) -> list[_Row]:
    nodes = list(explanation.measures.nodes)
    if len(nodes) > _MOST_NODES:
        nodes.sort(key=lambda node: -max(node.utilisation, node.kv_full_share))
        nodes = nodes[:_MOST_NODES]
    nodes.sort(key=lambda node: (not node.is_placed, node.start_layer, node.end_layer))
    prefix = common_prefix([node.name for node in nodes])
    colours = type_colours(
        tuple(dict.fromkeys(node.machine_type for node in explanation.measures.nodes))
    )
    found = []
    for node in nodes:
        bounds = tuple(
            each.kind for each in explanation.findings if _marks(each) and node.name in each.nodes
        )
        label = short_name(node.name, prefix)
        found.append(_Row(node, label, colours[node.machine_type], bounds))
    return found


def _marks(finding: Finding) -> bool:
    return finding.kind in _NODE_KINDS and finding.severity >= 0.5


def _notes(explanation: Explanation, num_rows: int) -> list[str]:
    notes = [f"Note: {note}" for note in explanation.notes]
    if left := len(explanation.measures.nodes) - num_rows:
        notes.append(f"{count_text(left, 'node')} that are less busy and less full are not drawn.")
    return notes


def _legend(explanation: Explanation, rows: list[_Row]) -> list[tuple[Swatch, str]]:
    colours = {row.node.machine_type: row.colour for row in rows}
    entries = [(patch_swatch(colour), name) for name, colour in colours.items()]
    if any(row.bounds for row in rows):
        outline = patch_swatch(tint(FAINT), edgecolor=BOUND, linewidth=1.8)
        entries.append((outline, "binds"))
    limit = explanation.measures.kv_limit
    entries.append((line_swatch(INK, linewidth=1.2), f"most of a KV cache in use: {limit:.0%}"))
    return entries


def _draw_caption(canvas: Canvas, caption: list[list[str]], y: float) -> None:
    for lines in caption:
        canvas.text(_MARGIN, y, "•", fontsize=_TEXT_SIZE)
        for line in lines:
            canvas.text(_MARGIN + 0.15, y, line, fontsize=_TEXT_SIZE)
            y += _TEXT_PITCH


# -- nodes -----------------------------------------------------------------------------------


def _draw_nodes(canvas: Canvas, rows: list[_Row], top: float, kv_limit: float) -> None:
    columns = {
        "node": [row.label for row in rows],
        "type": [row.node.machine_type for row in rows],
        "layers": [_layers(row.node) for row in rows],
    }
    if len({row.node.region for row in rows}) > 1:
        columns["region"] = [short_name(row.node.region) for row in rows]
    x = _MARGIN
    for title, texts in columns.items():
        column_head(canvas, x, top - 0.13, title, 8.0, "left")
        for number, text in enumerate(texts):
            canvas.text(x, top + (number + 0.5) * _PITCH, text, fontsize=_SIZE)
        x += max(text_width(text, _SIZE) for text in (title, *texts)) + _GAP
    figure = text_width("100%", _SIZE) + 0.1
    width = (_WIDTH - _MARGIN - x) / 2 - figure - 0.12
    right = x + width + figure + 0.24
    column_head(canvas, x, top - 0.13, "computes, share of the time", 8.0, "left")
    column_head(canvas, right, top - 0.13, "KV cache in use", 8.0, "left")
    for number, row in enumerate(rows):
        y = top + number * _PITCH
        edge = [(_MARGIN, y + _PITCH), (_WIDTH - _MARGIN, y + _PITCH)]
        canvas.line(edge, color=GRID, linewidth=0.4)
        _draw_share(canvas, (x, y, width), row.node.utilisation, row, "compute")
        _draw_share(canvas, (right, y, width), row.node.kv_share, row, "kv")
        whole = right + width - x
        style = {"facecolor": "white", "alpha": 0.001, "gid": f"node-{number}"}
        canvas.box(x, y, whole, _PITCH, **style)
    limit, bottom = right + width * min(1.0, kv_limit), top + len(rows) * _PITCH
    canvas.line([(limit, top), (limit, bottom)], color=INK, linewidth=1.2, zorder=5)


def _layers(node: NodeUse) -> str:
    if not node.is_placed:
        return "none"
    return layers_text(node.start_layer, node.end_layer).split()[1]


def _draw_share(
    canvas: Canvas, place: tuple[float, float, float], share: float, row: _Row, kind: str
) -> None:
    """A bar from 0 to 100 %, with the share in figures to its right."""
    x, y, width = place
    height = 0.74 * _PITCH
    top = y + (_PITCH - height) / 2
    canvas.box(x, top, width, height, facecolor=tint(row.colour, 0.2))
    canvas.box(x, top, width * min(1.0, share), height, facecolor=row.colour)
    binds = kind in row.bounds
    if binds:
        style = {"facecolor": "none", "edgecolor": BOUND, "linewidth": 1.8, "zorder": 4}
        canvas.box(x, top, width, height, **style)
    canvas.text(
        x + width + 0.08 + text_width("100%", _SIZE),
        y + _PITCH / 2,
        f"{share:.0%}" if row.node.is_placed else "-",
        fontsize=_SIZE,
        ha="right",
        color=BOUND if binds else INK,
        fontweight="bold" if binds else "normal",
    )


# -- changes ---------------------------------------------------------------------------------


def _change_lines(what_if: WhatIf, inner: float) -> list[str]:
    return wrapped(what_if.text + _price(what_if), _SIZE, inner - _GAIN_WIDTH - 1.75)


def _price(what_if: WhatIf) -> str:
    if what_if.dollars_per_hour is None:
        return ""
    text = f" ({what_if.dollars_per_hour:,.2f} $/h"
    if what_if.dollars_per_million_tokens is not None:
        text += f", {what_if.dollars_per_million_tokens:,.2f} $ per million additional tokens"
    return f"{text})"


def _row_height(lines: list[str], what_if: WhatIf) -> float:
    bars = 1 if what_if.simulated_gain is None else 2
    return max(len(lines) * 0.17, bars * 0.15) + 0.1


def _changes_height(shown: list[WhatIf], inner: float) -> float:
    if not shown:
        return 0.0
    return sum(_row_height(_change_lines(each, inner), each) for each in shown) + 0.15


def _draw_changes(
    canvas: Canvas, explanation: Explanation, shown: list[WhatIf], top: float
) -> None:
    goal, inner = explanation.goal, _WIDTH - 2 * _MARGIN
    direction = "more" if goal.is_throughput else "less"
    title = f"What one change would give: {direction} of {goal.figure}"
    canvas.text(_MARGIN, top - 0.42, title, fontsize=10.5, fontweight="bold")
    swatches: list[tuple[Swatch, str]] = [
        (patch_swatch(_SIMULATED), "simulated"),
        (patch_swatch(tint(PLAIN, 0.6)), "estimated"),
    ]
    draw_legend(canvas, _MARGIN, top - 0.16, legend_lines(swatches, inner))
    gains = [gain for each in shown for gain in (each.estimated_gain, each.simulated_gain or 0.0)]
    low, high = min(0.0, *gains), max(0.0, *gains)
    scale = _GAIN_WIDTH / max(high - low, 1e-9)
    left = _WIDTH - _MARGIN - _GAIN_WIDTH - 0.75
    zero = left - low * scale
    y = top
    for number, each in enumerate(shown):
        lines = _change_lines(each, inner)
        height = _row_height(lines, each)
        for place, line in enumerate(lines):
            middle = y + height / 2 + (place - (len(lines) - 1) / 2) * 0.17
            bold = "bold" if each.simulated_gain is not None else "normal"
            canvas.text(_MARGIN, middle, line, fontsize=_SIZE, fontweight=bold)
        _draw_gains(canvas, each, (zero, y, height), scale, number)
        y += height
        canvas.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], color=GRID, linewidth=0.4)
    canvas.line([(zero, top), (zero, y)], color=FAINT, linewidth=0.8)


def _draw_gains(
    canvas: Canvas, each: WhatIf, place: tuple[float, float, float], scale: float, number: int
) -> None:
    zero, y, height = place
    bars: list[tuple[float, str | tuple[float, float, float], str]] = [
        (each.estimated_gain, tint(PLAIN, 0.6), FAINT)
    ]
    if each.simulated_gain is not None:
        bars.insert(0, (each.simulated_gain, _SIMULATED, INK))
    for index, (gain, colour, ink) in enumerate(bars):
        middle = y + height / 2 + (index - (len(bars) - 1) / 2) * 0.15
        x, width = zero + min(0.0, gain) * scale, abs(gain) * scale
        canvas.box(x, middle - 0.06, width, 0.12, facecolor=colour)
        end = max(zero, zero + gain * scale) + 0.06
        canvas.text(end, middle, gain_text(gain), fontsize=7.5, color=ink)
    style = {"facecolor": "white", "alpha": 0.001, "gid": f"change-{number}"}
    canvas.box(_MARGIN, y, _WIDTH - 2 * _MARGIN, height, **style)


# -- tooltips --------------------------------------------------------------------------------


def _tooltips(rows: list[_Row], shown: list[WhatIf]) -> dict[str, str]:
    found = {f"node-{number}": _node_tip(row) for number, row in enumerate(rows)}
    return found | {f"change-{number}": _change_tip(each) for number, each in enumerate(shown)}


def _node_tip(row: _Row) -> str:
    node = row.node
    lines = [f"{node.name}, {node.machine_type}, region {node.region}"]
    if not node.is_placed:
        return "\n".join((*lines, "holds no layers"))
    lines += [
        f"computes {node.utilisation:.1%} of the time, {node.batch:,.1f} requests in a batch",
        f"{node.growing_share:.0%} of the work grows with the tokens",
        f"{node.waiting:,.1f} requests wait for a batch",
        f"KV cache {node.kv_share:.1%} in use, full {node.kv_full_share:.0%} of the time",
    ]
    return "\n".join(lines)


def _change_tip(each: WhatIf) -> str:
    lines = [each.text, f"estimated {gain_text(each.estimated_gain)}"]
    if each.simulated_gain is not None:
        lines += [f"simulated {gain_text(each.simulated_gain)}", figures_text(each.figures)]
    return "\n".join(lines)
