"""A scenario in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario
    from helixsim.scenario.workload_values import Workload


def scenario_rows(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Titles and texts that say what a scenario is."""
    run, cluster = scenario.run, scenario.cluster
    mix = ", ".join(f"{count} x {name}" for name, count in cluster.machine_mix().items())
    regions = len({machine.region for machine in (*cluster.front_ends, *cluster)})
    yield "scenario", scenario.name
    yield "LLM", f"{scenario.llm.name}, {scenario.llm.num_layers} layers"
    text = f"{_number(len(cluster), 'node')}: {mix}; {_number(regions, 'region')}"
    if len(cluster.front_ends) > 1:
        text += f", {_number(len(cluster.front_ends), 'front end')}"
    yield "cluster", text
    yield "placement", _placement(scenario)
    yield "scheduler", _scheduler(scenario)
    yield "workload", _workload(scenario.workload)
    yield "run", f"{run.duration_s:g} s, {run.warmup_s:g} s of it warm-up; seed {run.seed}"
    yield "physics", scenario.physics
    yield "digest", scenario.digest


def _scheduler(scenario: Scenario) -> str:
    settings = scenario.scheduler
    text = f"{settings.preset}, {settings.policy}"
    if settings.policy not in ("maxflow", "adaptive"):
        return text
    return f"{text}, {settings.flow_split} split of the flow"


def _placement(scenario: Scenario) -> str:
    placement = scenario.placement
    if placement is None:
        return "none, which a run needs"
    held = sum(end - start for start, end in placement.layers.values())
    copies = held / scenario.llm.num_layers
    links = "all links that fit" if placement.links is None else f"{len(placement.links)} links"
    return f"{_number(len(placement.layers), 'node')}, {copies:.2f} copies of each layer; {links}"


def _workload(workload: Workload) -> str:
    if workload.trace is not None:
        return f"online, {_number(len(workload.trace), 'request')} of {workload.trace.source}"
    if workload.mode == "offline":
        return f"offline, {_number(workload.initial_requests, 'request')} to start with"
    return f"online, {workload.mean_tokens_per_s:g} tokens/s on average"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
