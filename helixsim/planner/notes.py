"""Remarks on a plan by simulation."""

from __future__ import annotations

from math import isfinite

from helixsim.control.control_plane import followed_flow, performance_model
from helixsim.errors import HelixError
from helixsim.placement.flow import used_links
from helixsim.placement.placement import Placement
from helixsim.placement.topology import build_topology
from helixsim.planner.figures import GOODPUT
from helixsim.planner.objective import Objective, counted
from helixsim.planner.simulated.candidates import Candidate
from helixsim.planner.simulated.demand import offered_requests_per_s
from helixsim.scenario.resolved import Scenario

_NEARLY_ALL = 0.9
"""Share of the arriving requests below which goodput is clearly less: fewer arrive in a window than
on average, and the last ones are not finished."""


def notes_on(
    chosen: Candidate | None, objective: Objective, num_seeds: int, *, is_overcommitted: bool
) -> tuple[str, ...]:
    """What to say of the best candidate: limits that it breaks, and how much is known of it.

    Parameters
    ----------
    chosen
        The plan; None if none was simulated or estimated.
    objective
        What was searched for.
    num_seeds
        Runs that were wanted.
    is_overcommitted
        Whether nodes hold more layers than their type should.
    """
    if chosen is None:
        return ("stopped before any simulation; the plan is the best placement by flow",)
    if not chosen.figures:
        return (
            "time was up before any simulation of the plan, which is the best placement by "
            "the surrogate's estimate",
        )
    missed = [
        f"{limit} ({limit.actual(chosen.figures)})"
        for limit in objective.limits
        if limit.kept_share(chosen.figures) < 1
    ]
    notes = [f"no placement was found that keeps {' and '.join(missed)}"] if missed else []
    if is_overcommitted:
        notes.append(
            "the plan is the scenario's own placement, in which nodes hold more layers than "
            "their type should; the bound covers only placements without such nodes"
        )
    if not chosen.runs:
        notes.append(
            f"time was up after {chosen.stopped_s:.0f} s of the first simulation; its figures "
            "are of these only"
        )
    elif len(chosen.runs) < num_seeds:
        notes.append(
            f"time was up after {len(chosen.runs)} of {num_seeds} seeds; the means are less certain"
        )
    return tuple(notes)


def unserved_load(chosen: Candidate | None, objective: Objective, scenario: Scenario) -> str:
    """What to say where a plan for goodput serves clearly less than arrives; empty otherwise."""
    if chosen is None or objective.figure != GOODPUT or not chosen.figures:
        return ""
    workload = scenario.workload
    tokens = workload.mean_prompt_tokens + workload.mean_output_tokens
    offered = offered_requests_per_s(scenario, tokens)
    served = counted(chosen.figures, GOODPUT)
    if not (isfinite(offered) and served < _NEARLY_ALL * offered):
        return ""
    return (
        f"of the {offered:.4g} requests/s that arrive, {served:.4g} are served within their SLOs: "
        "the machines do not hold this load"
    )


def small_shares(scenario: Scenario, placement: Placement) -> str:
    """What to say where front ends pass over nodes because of small shares; empty otherwise."""
    scheduler = scenario.scheduler
    if scheduler.policy not in ("maxflow", "adaptive") or not scheduler.min_flow_share:
        return ""
    try:
        topology = build_topology(scenario.llm, scenario.cluster, placement, scenario.machine_types)
    except HelixError:
        return ""
    by_link = followed_flow(scenario, topology).link_tokens_per_s
    waits = performance_model(scenario).requests_wait
    least, passed_over = 1.0, 0
    for home in topology.front_end_machines:
        links = [link for link in topology.outgoing[home] if by_link[link.index] > 0]
        used = used_links(
            links,
            by_link,
            scheduler.min_flow_share,
            half_of_equal_is_enough=waits,
            replicas=topology.replicas if waits else (),
        )
        passed_over += len(links) - len(used)
        total = sum(by_link[link.index] for link in links)
        least = min([least, *(by_link[link.index] / total for link in links)])
    if not passed_over:
        return ""
    return (
        f"{passed_over} of the nodes with the first layers get no requests, as their shares of the "
        f"flow are below scheduler.min_flow_share = {scheduler.min_flow_share:g}; plan with "
        f"--set scheduler.min_flow_share={least / 2:.2g} to use them"
    )
