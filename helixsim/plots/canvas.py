"""Parts that all plots share: results by name, colours, one style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from helixsim.metrics.result import RunResult

if TYPE_CHECKING:
    import pandas as pd

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b5a800")
"""After Okabe and Ito: told apart with any colour vision. It repeats after eight."""


Results = RunResult | Mapping[str, RunResult]
"""One result, or several by name."""


def named(results: Results) -> dict[str, RunResult]:
    """Results by name; a single one takes the name of its scenario."""
    if isinstance(results, Mapping):
        return dict(results)
    return {str(results.summary["scenario"]): results}


def colours(names: Mapping[str, object]) -> dict[str, str]:
    """A colour for each name."""
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)}


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's white grid over our own settings, whatever a user's matplotlibrc says."""
    import matplotlib as mpl
    import seaborn as sns

    from helixsim.drawing.style import our_settings

    with our_settings():
        mpl.rcParams.update(sns.axes_style("whitegrid"))
        mpl.rcParams.update(
            {
                "font.family": ["DejaVu Sans"],
                "grid.color": "#e3e5e8",
                "axes.edgecolor": "#8a8f98",
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "svg.fonttype": "none",
                "svg.hashsalt": "helixsim",
            }
        )
        yield


def since_warmup(frame: pd.DataFrame, result: RunResult) -> pd.Series:
    """Times of a frame, counted from the end of the warm-up."""
    since: pd.Series = frame["time_s"] - result.summary["window_start_s"]
    return since
