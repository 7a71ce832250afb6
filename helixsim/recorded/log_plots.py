"""Pictures of request logs and their replays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helixsim.recorded.log_figures import Latencies
from helixsim.recorded.plots import RECORDED, SIMULATED, distribution, line, panels, png
from helixsim.recorded.request_log import RequestLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from helixsim.recorded.log_replay import LogReplayResult

_RUNNING, _WAITING = "#444444", "#0072b2"


def inspection_picture(log: RequestLog) -> bytes:
    """Overview of a request log, as PNG: latencies, and requests over time."""
    figure, axes = panels()
    latencies = Latencies.of(log)
    for ax, title, values in (
        (axes[0], "Time to first token", latencies.ttft_s),
        (axes[1], "Time per output token", latencies.tpot_s),
        (axes[2], "End-to-end latency", latencies.e2e_s),
    ):
        distribution(ax, title, [(None, values, RECORDED)], of="requests")
    ax, series = axes[3], log.series
    if series is None:
        ax.step(log.sent_s, np.arange(1, len(log) + 1), color=RECORDED, label="sent")
        last = np.sort(log.last_token_s[np.isfinite(log.last_token_s)])
        ax.step(last, np.arange(1, len(last) + 1), color=_WAITING, label="finished")
        ax.set(title="Requests", xlabel="time, s", xlim=(0, None), ylim=(0, None))
    else:
        line(ax, series.time_s, series.running, _RUNNING, "running")
        line(ax, series.time_s, series.waiting, _WAITING, "waiting")
        ax.set(title="Requests in the engine")
    ax.legend(frameon=False)
    figure.suptitle(log.name)
    return png(figure)


def replay_picture(result: LogReplayResult) -> bytes:
    """A request log beside its replay, as PNG."""
    return png(replay_figure(result))


def replay_figure(result: LogReplayResult) -> Figure:
    """A request log beside its replay: latencies, and requests over time."""
    figure, axes = panels()
    recorded, simulated = Latencies.of(result.log), result.latencies
    for ax, title, name in (
        (axes[0], "Time to first token", "ttft_s"),
        (axes[1], "Time per output token", "tpot_s"),
    ):
        distribution(
            ax,
            title,
            [
                ("recorded", getattr(recorded, name)[result.chosen], RECORDED),
                ("simulated", getattr(simulated, name)[result.chosen], SIMULATED),
            ],
            of="requests",
        )
    over_time = result.series
    for ax, state in ((axes[2], "running"), (axes[3], "waiting")):
        for side, colour in (("recorded", RECORDED), ("simulated", SIMULATED)):
            # The samples of the two runs may be at other times.
            known = over_time[["time_s", f"{side}_{state}"]].dropna()
            line(ax, known["time_s"], known[f"{side}_{state}"], colour, side)
        ax.set(title=f"{state.capitalize()} requests")
        ax.legend(frameon=False)
    figure.suptitle(f"{result.log.name}, {result.scenario.physics} physics")
    return figure
