"""Style of pictures: colours, and settings independent of a user's matplotlibrc."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl

from helixsim.profiles.library import shipped_machine_types

INK = "#222222"
FAINT = "#8a8f98"
GRID = "#e3e5e8"
STRIP = "#eef0f2"
SAME_REGION = "#5b6470"
OTHER_REGION = "#7b2fa8"
BOUND = "#d5270f"
"""Reserved for bottlenecks of the flow."""
PLAIN = "#7f93a8"

_TYPES = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#56b4e9",
    "#cc79a7",
    "#b5a800",
    "#7a5c3e",
    "#4d4d9f",
    "#9fd8c0",
    "#a6a6a6",
)
"""After Okabe and Ito: told apart with any colour vision; their vermilion is BOUND's."""


def type_colours(machine_types: Sequence[str]) -> dict[str, str]:
    """A colour for each machine type.

    Shipped types have the same colour in every picture; others take the remaining ones. Colours
    repeat after ten.
    """
    if list(machine_types) == [""]:
        return {"": PLAIN}
    shipped = dict(zip(shipped_machine_types(), _TYPES, strict=False))
    found = {name: shipped[name] for name in machine_types if name in shipped}
    free = [colour for colour in _TYPES if colour not in found.values()]
    others = [name for name in machine_types if name not in found]
    found |= {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: found[name] for name in machine_types}


def tint(colour: str, share: float = 0.28) -> tuple[float, float, float]:
    """A colour mixed with white; `share` of it is left."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


@contextmanager
def our_settings() -> Iterator[None]:
    """Matplotlib's defaults with our settings, independent of a user's matplotlibrc.

    SVG texts stay texts, and names in SVG files are the same in every process.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "helixsim",
                "font.family": ["DejaVu Sans"],
                "font.size": 8.5,
                "text.color": INK,
                "text.parse_math": False,
                "axes.edgecolor": FAINT,
                "axes.labelcolor": INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "xtick.color": INK,
                "ytick.color": INK,
                "path.simplify": True,
            }
        )
        yield
