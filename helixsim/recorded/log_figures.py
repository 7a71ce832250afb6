"""Figures of request logs and of their replays in the same form, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from helixsim.recorded.request_log import RequestLog

PERCENTILES = (50, 90, 95, 99)
COLUMNS = ("mean", *(f"p{p}" for p in PERCENTILES))
TITLES = {
    "ttft_s": "time to first token s",
    "tpot_s": "time per output token s",
    "e2e_s": "end to end s",
}


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies of each request; NaN where one does not exist.

    Attributes
    ----------
    ttft_s
        From queueing to the first token.
    tpot_s
        Mean time per output token after the first; none for an answer of one token.
    e2e_s
        From queueing to the last token.
    """

    ttft_s: np.ndarray
    tpot_s: np.ndarray
    e2e_s: np.ndarray

    @classmethod
    def of(cls, log: RequestLog) -> Latencies:
        """The recorded latencies."""
        gaps = np.where(log.output_tokens > 1, log.output_tokens - 1.0, np.nan)
        return cls(
            log.first_token_s - log.sent_s,
            (log.last_token_s - log.first_token_s) / gaps,
            log.last_token_s - log.sent_s,
        )

    def statistics(self, chosen: np.ndarray) -> dict[str, dict[str, float | None]]:
        """Mean and percentiles by name, of the chosen requests (a mask)."""
        return {name: statistics(getattr(self, name)[chosen]) for name in TITLES}


def statistics(values: np.ndarray) -> dict[str, float | None]:
    """Mean and percentiles of the values that are no NaN; None for each if there are none.

    Percentiles are interpolated linearly between the two nearest values, as numpy does.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return dict.fromkeys(COLUMNS)
    found = [known.mean(), *np.percentile(known, PERCENTILES)]
    return {name: float(value) for name, value in zip(COLUMNS, found, strict=True)}


def sent_between(log: RequestLog, start_s: float, end_s: float | None) -> np.ndarray:
    """Which requests were sent within a window, both ends included; without an end, until all."""
    until = log.sent_s <= (np.inf if end_s is None else end_s)
    return np.asarray((log.sent_s >= start_s) & until)


def statistics_text(found: Mapping[str, Any]) -> list[str]:
    """The table of latencies, a line for each."""
    return [
        " " * 26 + "".join(f"{name:>10}" for name in COLUMNS),
        *(
            f"{title:<26}" + "".join(f"{figure(found[key][name]):>10}" for name in COLUMNS)
            for key, title in TITLES.items()
        ),
    ]


def comparison_text(found: Mapping[str, Any]) -> str:
    """A request log beside its replay, with errors."""
    seeds = len(found["seeds"])
    lines = [
        f"{found['run']} in {found['scenario']} ({found['physics']} physics, "
        f"{'mean of ' if seeds > 1 else ''}{seeds} seed{'s' * (seeds > 1)}), "
        f"{found['requests']} requests",
        "",
        f"{'':<30}{'recorded':>10}{'simulated':>11}{'error':>9}",
    ]
    for key, title in TITLES.items():
        lines += [_row(found, f"{title:<24}{name:>5}", key, name) for name in COLUMNS]
    lines += [_row(found, "makespan s", "makespan_s"), _row(found, "preemptions", "preemptions")]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def figure(value: float | None) -> str:
    """A number for a table."""
    return "-" if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """A number of events, or a mean of such numbers, for a table."""
    return "-" if value is None else f"{value:g}"


def _row(found: Mapping[str, Any], title: str, key: str, column: str | None = None) -> str:
    recorded, simulated, error = (
        found[side][key] if column is None else found[side][key][column]
        for side in ("recorded", "simulated", "error")
    )
    shown = "-" if error is None else f"{error:+.1%}"
    show = count if key == "preemptions" else figure
    return f"{title:<30}{show(recorded):>10}{show(simulated):>11}{shown:>9}"
