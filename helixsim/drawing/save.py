"""Write drawings as PNG, SVG or HTML: whole or not at all, the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from helixsim.drawing.style import our_settings
from helixsim.errors import OutputError
from helixsim.output_files import write_whole

SUFFIXES = (".png", ".svg", ".html")
PNG_DPI = 150


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with its texts.

    Attributes
    ----------
    figure
        The matplotlib figure.
    title, description
        Metadata of the file: title and alternative text.
    tooltips
        gid of an artist -> its tooltip in SVG and HTML.
    """

    figure: Figure
    title: str
    description: str = ""
    tooltips: Mapping[str, str] = field(default_factory=dict)


def check_suffix(path: Path) -> None:
    """Refuse a file whose suffix is not that of a format.

    Raises
    ------
    OutputError
        Naming the formats.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"{path}: pictures are written as {', '.join(SUFFIXES)}; end the name in one of them"
        )


def save_drawing(drawing: Drawing, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a drawing; the suffix of the file selects the format.

    Raises
    ------
    OutputError
        If the suffix is unknown, or the file exists or cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    write_whole(path, drawing_bytes(drawing, path.suffix.lower()), overwrite=overwrite)


def drawing_bytes(drawing: Drawing, suffix: str) -> bytes:
    """The bytes of a file with that suffix. SVG and HTML are the same in every process."""
    if suffix == ".png":
        return _png(drawing)
    svg = _svg(drawing)
    return (html_page(svg, drawing.title) if suffix == ".html" else svg).encode()


def _png(drawing: Drawing) -> bytes:
    stream = BytesIO()
    with our_settings():
        metadata = {"Software": "helixsim", "Title": drawing.title}
        drawing.figure.savefig(stream, format="png", dpi=PNG_DPI, metadata=metadata)
    return stream.getvalue()


def _svg(drawing: Drawing) -> str:
    stream = BytesIO()
    with our_settings():
        metadata = {
            "Date": None,
            "Creator": "helixsim",
            "Title": drawing.title,
            "Description": drawing.description,
        }
        drawing.figure.savefig(stream, format="svg", metadata=metadata)

    def with_tip(match: re.Match[str]) -> str:
        tip = drawing.tooltips.get(match[1])
        return match[0] if tip is None else f"{match[0]}<title>{escape(tip)}</title>"

    text = stream.getvalue().decode()
    # Where DejaVu is missing, a font of the same widths keeps texts apart.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return re.sub(r'<g id="([^"]+)">', with_tip, text)


_STYLE = """
body { margin: 0; background: #fff; font: 13px 'DejaVu Sans', Verdana, sans-serif; }
svg { display: block; width: 100%; height: auto; max-width: 1500px; margin: 0 auto; }
svg .tipped { cursor: default; }
svg.pointing .tipped[id^="flow-"] { opacity: 0.15; }
svg.pointing .tipped.lit { opacity: 1; }
#tip { position: fixed; display: none; pointer-events: none; white-space: pre; padding: 6px 9px;
  background: #222; color: #fff; border-radius: 4px; line-height: 1.45; z-index: 1; }
"""

_SCRIPT = """
const svg = document.querySelector("svg"), tip = document.getElementById("tip");
const tipped = [];
svg.querySelector(":scope > title")?.remove();  // the page has it
for (const title of svg.querySelectorAll("g > title")) {
  const group = title.parentNode;
  const text = title.textContent;
  title.remove();
  group.setAttribute("aria-label", text);
  group.classList.add("tipped");
  tipped.push(group);
  group.addEventListener("mouseenter", () => point(group, text));
  group.addEventListener("mousemove", place);
  group.addEventListener("mouseleave", () => {
    tip.style.display = "none";
    svg.classList.remove("pointing");
  });
}
function point(group, text) {
  const lane = group.id.startsWith("lane-") ? group.id.slice(5) : null;
  const lit = other => other === group ||
    lane !== null && other.id.startsWith("flow-") && other.id.split("-").slice(1).includes(lane);
  for (const other of tipped) other.classList.toggle("lit", lit(other));
  svg.classList.add("pointing");
  tip.textContent = text;
  tip.style.display = "block";
}
function place(event) {
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = event.clientY + 18 + tip.offsetHeight > innerHeight
    ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
  tip.style.left = x + "px";
  tip.style.top = y + "px";
}
"""


def html_page(svg: str, title: str) -> str:
    """A page with an SVG inline that shows the titles of its groups as tooltips."""
    inline = svg[svg.index("<svg") :]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'{inline}<div id="tip"></div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
    )
