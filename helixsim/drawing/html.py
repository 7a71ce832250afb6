"""One self-contained page around an SVG: tooltips without delay, no network."""

from __future__ import annotations

from html import escape

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
