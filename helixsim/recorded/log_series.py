"""Running and waiting requests of a simulation over time, as an engine counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helixsim.metrics.result import RunResult

if TYPE_CHECKING:
    import pandas as pd


def start_s(result: RunResult) -> float:
    """Simulated time at which the first request was sent, in a run without warm-up."""
    return float(result.summary["window_start_s"])


def simulated_series(result: RunResult) -> pd.DataFrame:
    """Requests over time: columns `time_s`, `simulated_running` and `simulated_waiting`.

    Requests wait at the coordinator, or at a node while they are in no batch; all others in the
    system run. The gauge of a node includes decodes between two batches, which an engine counts as
    running. Therefore at most the requests count as waiting that have no token yet, or that were
    preempted or restarted.
    """
    import pandas as pd

    at_nodes = result.nodes.groupby("time_s")["waiting"].sum()
    times = at_nodes.index.to_numpy()
    served = result.requests["status"].isin(["completed", "in flight", "waiting"])
    requests = result.requests[served]
    active = result.timeline.set_index("time_s")["active_requests"].reindex(times).to_numpy()
    in_system = _between(requests["arrival_s"], requests["end_s"], times)
    with_token = _between(requests["first_token_s"], requests["end_s"], times)
    taken_out = requests[(requests["restarts"] > 0) | (requests["preemptions"] > 0)]
    may_wait_again = _between(taken_out["first_token_s"], taken_out["end_s"], times)
    without_batch = at_nodes.to_numpy() + np.maximum(in_system - active, 0)
    waiting = np.minimum(without_batch, in_system - with_token + may_wait_again)
    return pd.DataFrame(
        {
            "time_s": np.round(times - start_s(result), 6),
            "simulated_running": in_system - waiting,
            "simulated_waiting": waiting,
        }
    )


def _between(start: pd.Series, end: pd.Series, times: np.ndarray) -> np.ndarray:
    """How many intervals contain each time; missing starts and ends never come."""
    begun, ended = np.sort(start.dropna()), np.sort(end.dropna())
    return np.asarray(
        np.searchsorted(begun, times, "right") - np.searchsorted(ended, times, "right")
    )
