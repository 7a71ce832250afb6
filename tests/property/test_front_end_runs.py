"""What holds for any run with several front ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import HOST, iterations, make_topology
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from toy_scenarios import POLICIES, scenarios, troubled

from helixsim.cluster import FrontEnd, Link, LinkList, Nic
from helixsim.errors import NoRouteError
from helixsim.models.simulation import Simulation, Watcher, simulate
from helixsim.placement.flow import max_flow
from helixsim.profiles.throughput import estimate_throughput
from helixsim.scenario.resolved import Scenario

SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


VALIDATES = Watcher(0.1, lambda simulation: simulation.coordinator.validate())


def looping(scenario: Scenario) -> Scenario:
    """The scenario where decodes do not return between passes."""
    scheduler = replace(scenario.scheduler, node="vllm")
    # The toy LLM has one byte of weights: attention to earlier chunks would take days beside them.
    llm = replace(scenario.llm, layer_bytes=1000 * scenario.llm.activation_bytes_per_token)
    return replace(scenario, llm=llm, physics="calibrated", scheduler=scheduler)


@st.composite
def with_front_ends(draw: st.DrawFn, plain: st.SearchStrategy[Scenario]) -> Scenario:
    """Scenarios with more front ends; each lacks some of the coordinator's links."""
    scenario = draw(plain)
    first, names = (
        scenario.cluster.front_ends[0],
        [HOST, "second", "third"][: draw(st.integers(2, 3))],
    )
    weights = [draw(st.integers(1, 9)) for _ in names]
    links = dict(scenario.cluster.network.links)
    pairs = list(scenario.placement.links)
    for name in names[1:]:
        for source, target in scenario.placement.links:
            if HOST in (source, target) and draw(st.integers(0, 4)):
                pair = tuple(name if end == HOST else end for end in (source, target))
                link = scenario.cluster.network.link(source, target)
                latency_s = link.latency_s * draw(st.sampled_from([0.5, 1.0, 3.0]))
                links[pair] = Link(*pair, link.bandwidth_bytes_per_s, latency_s)
                pairs.append(pair)
    fast = Nic(first.nic.inbound_bytes_per_s * 2, first.nic.outbound_bytes_per_s)
    front_ends = tuple(
        FrontEnd(fast, "default", name, weight / sum(weights))
        for name, weight in zip(names, weights, strict=True)
    )
    cluster = replace(scenario.cluster, front_ends=front_ends, network=LinkList(links))
    changed = replace(
        scenario,
        cluster=cluster,
        placement=replace(scenario.placement, links=tuple(pairs)),
        scheduler=replace(scenario.scheduler, min_flow_share=0.0),
    )
    try:
        make_topology(changed)
    except NoRouteError:
        assume(False)
    return changed


@pytest.mark.parametrize("loops", [False, True])
@SETTINGS
@given(plain=with_front_ends(scenarios(drain=True, policies=(*POLICIES, "adaptive"))))
def test_what_leaves_a_front_end_returns_to_it(loops, plain):
    scenario = looping(plain) if loops else plain
    simulation = Simulation(scenario, record_iterations=True)
    result = simulation.run((VALIDATES,))
    assert simulation.is_idle
    requests = result.requests
    front_end = dict(zip(requests["request"], requests["front_end"], strict=True))
    passes = Counter(front_end[request] for request, *_ in iterations(result))
    sent, returned = Counter(), Counter()
    topology = simulation.topology
    for link in simulation.links:
        source, target = link.placed.source, link.placed.target
        if topology.is_front_end(source):
            sent[topology.name(source)] += link.num_requests
        if topology.is_front_end(target):
            returned[topology.name(target)] += link.num_requests
    # Where decodes loop, a request leaves once.
    left = Counter(front_end[each] for each in begun(result)) if loops else passes
    if requests["restarts"].any():  # passes of an attempt that was given up are on the links, too
        assert returned >= passes
        assert sent >= left
    else:
        assert (+returned, +sent) == (passes, left)


def begun(result) -> set[int]:
    """The requests that have a pass."""
    return {request for request, *_ in iterations(result)}


@pytest.mark.parametrize("loops", [False, True])
@SETTINGS
@given(plain=with_front_ends(troubled()))
def test_invariants_hold_whatever_fails(loops, plain):
    result = simulate(looping(plain) if loops else plain, watchers=(VALIDATES,))
    counts = result.summary["requests"]
    over = ("completed", "rejected", "failed", "in_flight", "waiting")
    assert counts["arrived"] == sum(counts[name] for name in over)


@SETTINGS
@given(with_front_ends(scenarios(policies=("maxflow",))))
def test_a_flow_gives_each_front_end_its_share_and_leaves_nothing_at_a_node(scenario):
    topology = make_topology(scenario)
    throughput = estimate_throughput(
        scenario.llm,
        scenario.profiles(),
        scenario.cluster.machine_mix(),
        mean_prompt_tokens=10,
        mean_output_tokens=4,
    )
    flow = max_flow(topology, throughput)
    by_link, total = flow.link_tokens_per_s, flow.tokens_per_s

    def through(links):
        return sum(by_link[link.index] for link in links)

    for machine, front_end in zip(topology.front_end_machines, topology.front_ends, strict=True):
        wanted = front_end.share * total
        assert abs(through(topology.outgoing[machine]) - wanted) <= 1e-6 * total
        assert abs(through(topology.incoming[machine]) - wanted) <= 1e-6 * total
    for node in topology.nodes:
        into, out = through(topology.incoming[node.index]), through(topology.outgoing[node.index])
        assert abs(into - out) <= 1e-6 * total
