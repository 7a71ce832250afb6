"""A scenario in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from helixsim.scenario.offered_load import offered_requests_per_s
from helixsim.scenario.workload_warnings import workload_warnings
from helixsim.traces.values import Lengths

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario


def scenario_rows(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Titles and texts that say what a scenario is."""
    run, cluster = scenario.run, scenario.cluster
    mix = ", ".join(f"{count} x {name}" for name, count in cluster.machine_mix().items())
    regions = len({machine.region for machine in (*cluster.front_ends, *cluster)})
    yield "scenario", scenario.name
    yield "LLM", _llm(scenario)
    text = f"{_number(len(cluster), 'node')}: {mix}; {_number(regions, 'region')}"
    if len(cluster.front_ends) > 1:
        text += f", {_number(len(cluster.front_ends), 'front end')}"
    yield "cluster", text
    yield "placement", _placement(scenario)
    yield "scheduler", _scheduler(scenario)
    workload = scenario.workload
    yield "workload", _workload(scenario)
    yield (
        "request",
        f"{workload.mean_prompt_tokens} prompt and {workload.mean_output_tokens} output tokens on "
        "average",
    )
    yield from (("warning", warning) for warning in workload.warnings)
    yield "run", f"{run.duration_s:g} s, {run.warmup_s:g} s of it warm-up; seed {run.seed}"
    yield "physics", scenario.physics
    yield "digest", scenario.digest
    yield from (("warning", warning) for warning in workload_warnings(scenario))


def _llm(scenario: Scenario) -> str:
    text = f"{scenario.llm.name}, {scenario.llm.num_layers} layers"
    if (made := scenario.architecture) is not None:
        text += f", {made.parameters / 1e9:.4g} x 10^9 parameters; weights {made.weights.name}"
        text += f", KV cache {made.kv.name}"
    return text


def _scheduler(scenario: Scenario) -> str:
    settings = scenario.scheduler
    text = f"{settings.preset}, {settings.policy}"
    if settings.policy not in ("maxflow", "adaptive"):
        return text
    return f"{text}, {settings.flow_split} split of the flow"


def _placement(scenario: Scenario) -> str:
    placement = scenario.placement
    if placement is None:
        return "none: a run uses a simple rule, `helixsim plan` searches for one"
    held = sum(end - start for start, end in placement.layers.values())
    copies = held / scenario.llm.num_layers
    links = "all links that fit" if placement.links is None else f"{len(placement.links)} links"
    return f"{_number(len(placement.layers), 'node')}, {copies:.2f} copies of each layer; {links}"


def _workload(scenario: Scenario) -> str:
    workload = scenario.workload
    if workload.trace is not None:
        return f"online, {_number(workload.trace.num_turns, 'request')} of {workload.trace.source}"
    source = workload.lengths.source if isinstance(workload.lengths, Lengths) else ""
    lengths = f"; lengths of {source}" if source else ""
    if workload.mode == "offline":
        load = f"offline, {_number(workload.initial_requests, 'request')} to start with"
    elif workload.mean_tokens_per_s is not None:
        load = f"online, {workload.mean_tokens_per_s:g} tokens/s on average"
    else:
        per_s = offered_requests_per_s(workload, scenario.run.duration_s)
        load = f"online, {per_s:.4g} requests/s on average"
    classes = ", ".join(workload.class_names)
    return f"{load} of {classes}" if classes else load + lengths


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
