"""Shares of requests that get no answer in time: they count in latencies and attainments.

Online, a request misses every latency if it was rejected, has failed, or still waits for its first
token much longer than others: placements do not gain by rejecting requests, or by letting them pile
up. Offline, none does, as load follows the throughput.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from helixsim.models.simulation import Simulation
from helixsim.planner.objective import DURATION_S, MISSED_SHARE, UNSERVED_SHARE
from helixsim.requests import Request
from helixsim.scenario.resolved import Slo

_LATE_SHARE = 0.1
"""Share of a run's time after which a request without a token counts as missed. Where requests
arrive faster than they are served, all wait for ever longer, and none longer than most others."""


def missed_figures(simulation: Simulation, summary: Mapping[str, Any]) -> dict[str, float]:
    """The length of the run, and shares of missed requests: of all, each class and front end.

    Parameters
    ----------
    simulation
        The run, up to now.
    summary
        Its summary, up to now.

    Returns
    -------
    dict
        :data:`.DURATION_S`; :data:`.MISSED_SHARE` of all requests and, after prefixes such as
        ``classes.chat.``, of groups; :data:`.UNSERVED_SHARE` of each SLO.
    """
    found = {DURATION_S: simulation.scenario.run.duration_s}
    online = simulation.scenario.workload.mode == "online"
    names = simulation.scenario.cluster.front_end_names
    classes = simulation.scenario.workload.class_names
    groups: dict[str, tuple[Mapping[str, Any], Callable[[Request], bool]]] = {
        "": (summary, lambda request: True)
    }
    for name, figures in summary.get("classes", {}).items():
        groups[f"classes.{name}."] = (
            figures,
            lambda request, name=name: request.user_class == name,  # type: ignore[misc]
        )
    for name, figures in summary.get("front_ends", {}).items():
        groups[f"front_ends.{name}."] = (
            figures,
            lambda request, name=name: names[request.front_end] == name,  # type: ignore[misc]
        )
    for prefix, (figures, is_of_group) in groups.items():
        late = _late(simulation, figures, is_of_group) if online else []
        found[prefix + MISSED_SHARE] = _missed_share(figures, len(late)) if online else 0.0
        for slo in simulation.scenario.slos:
            if slo.name not in figures["slo"]:
                continue
            own = [request for request in late if _is_for(slo, request, classes)]
            found[f"{prefix}slo.{slo.name}.{UNSERVED_SHARE}"] = _unserved_share(
                slo, figures["slo"][slo.name], own, simulation.now
            )
    return found


def _late(
    simulation: Simulation, figures: Mapping[str, Any], is_of_group: Callable[[Request], bool]
) -> list[Request]:
    """Requests of a group that still wait for their first token, much longer than others did."""
    now = simulation.now
    usual_s = figures["ttft_s"]["p99"]  # None if none of them has a token
    longest_s = _LATE_SHARE * (now - simulation.start_s)
    if usual_s is not None:
        longest_s = min(2 * usual_s, longest_s)
    coordinator = simulation.coordinator
    return [
        request
        for requests in (coordinator.active, coordinator.waiting)
        for request in requests
        if request.first_token_s != request.first_token_s  # NaN before the first token
        and now - request.arrival_s > longest_s
        and is_of_group(request)
    ]


def _missed_share(figures: Mapping[str, Any], num_late: int) -> float:
    counts = figures["requests"]
    missed = counts["rejected"] + counts["failed"] + num_late
    return missed / counts["arrived"] if counts["arrived"] else 0.0


def _is_for(slo: Slo, request: Request, classes: Collection[str]) -> bool:
    return slo.name not in classes or slo.name == request.user_class


def _unserved_share(slo: Slo, figures: Mapping[str, Any], late: list[Request], now: float) -> float:
    """Share of late requests that the SLO does not count as due, of them and the requests due."""
    limits = [limit_s for limit_s in (slo.ttft_s, slo.e2e_s) if limit_s is not None]
    longest_s = min(limits, default=None)
    extra = sum(1 for request in late if longest_s is None or now - request.arrival_s <= longest_s)
    return extra / (extra + figures["due"]) if extra else 0.0
