"""A figure addressed in inches from its top left corner, and the widths of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

from helixsim.drawing.style import BOUND, FAINT, INK

Point = tuple[float, float]


class Canvas:
    """A figure of a given size; x grows to the right and y downwards, both in inches."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, **style: Any) -> None:  # noqa: ANN401
        """Write a text whose vertical middle is at y."""
        style = {"va": "center_baseline", "ha": "left", "color": INK} | style
        self.axes.text(x, y, text, **style)

    def box(self, x: float, y: float, width: float, height: float, **style: Any) -> None:  # noqa: ANN401
        """Draw a rectangle from its top left corner."""
        style = {"linewidth": 0.0} | style
        self.axes.add_patch(Rectangle((x, y), width, height, **style))

    def line(self, points: Sequence[Point], **style: Any) -> None:  # noqa: ANN401
        """Draw straight lines."""
        xs, ys = zip(*points, strict=True)
        self.axes.add_line(Line2D(xs, ys, **style))

    def curve(self, points: Sequence[Point], **style: Any) -> None:  # noqa: ANN401
        """Draw a cubic Bezier curve by its four points."""
        path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        self.axes.add_patch(PathPatch(path, facecolor="none", **style))

    def plot(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes for a plot, from their top left corner."""
        bottom = self.height - y - height
        return self.figure.add_axes(
            (x / self.width, bottom / self.height, width / self.width, height / self.height)
        )


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a text in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break a text into lines that are no wider than `width` inches, between words."""
    lines = [""]
    for word in re.split(r"(?<! x) (?!x )", text):  # "3 x T4" stays together
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


Swatch = Callable[[Canvas, float, float], None]
"""Draws a sample at x (its left) and y (its middle), SWATCH inches wide."""

SWATCH = 0.24
LEGEND_SIZE = 8.5
LEGEND_PITCH = 0.21


def patch_swatch(colour: object, **style: Any) -> Swatch:  # noqa: ANN401
    """A sample of a bar."""
    return lambda canvas, x, y: canvas.box(x, y - 0.055, SWATCH, 0.11, facecolor=colour, **style)


def line_swatch(colour: str, **style: Any) -> Swatch:  # noqa: ANN401
    """A sample of a line."""
    return lambda canvas, x, y: canvas.line([(x, y), (x + SWATCH, y)], color=colour, **style)


def mark_swatch() -> Swatch:
    """A sample of the mark at a bar's end."""
    return lambda canvas, x, y: canvas.box(
        x + SWATCH / 2 - 0.03, y - 0.08, 0.06, 0.16, facecolor=BOUND
    )


def legend_lines(
    entries: Sequence[tuple[Swatch, str]], width: float
) -> list[list[tuple[float, Swatch, str]]]:
    """Break the entries of a legend into lines of at most `width` inches."""
    if not entries:
        return []
    lines: list[list[tuple[float, Swatch, str]]] = [[]]
    x = 0.0
    for swatch, text in entries:
        needed = SWATCH + 0.08 + text_width(text, LEGEND_SIZE)
        if lines[-1] and x + needed > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, swatch, text))
        x += needed + 0.26
    return lines


def draw_legend(
    canvas: Canvas, x: float, y: float, lines: Sequence[Sequence[tuple[float, Swatch, str]]]
) -> None:
    """Draw the lines of a legend, the first one's middle at y."""
    for number, line in enumerate(lines):
        middle = y + number * LEGEND_PITCH
        for offset, swatch, text in line:
            swatch(canvas, x + offset, middle)
            canvas.text(x + offset + SWATCH + 0.08, middle, text, fontsize=LEGEND_SIZE)


def column_head(canvas: Canvas, x: float, y: float, text: str, size: float, ha: str) -> None:
    """Write the head of a column of a table."""
    canvas.text(x, y, text, fontsize=size, color=FAINT, ha=ha)
