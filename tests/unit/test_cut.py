"""Minimum cuts: the real ones, whatever else is used to the full."""

from __future__ import annotations

import networkx as nx
import pytest
from builders import HOST, make_machine_type, make_scenario, make_topology

from helixsim.drawing.picture import solve
from helixsim.placement.cut import min_cut
from helixsim.placement.cut_text import bottleneck_text, elsewhere_text, ranges_text
from helixsim.placement.export import to_networkx
from helixsim.placement.flow import flow_graph, max_flow
from helixsim.profiles.throughput import ThroughputEstimate, ThroughputTable
from helixsim.scenario.load import load_scenario

CHAIN = {"a": (0, 1), "b": (1, 2)}
FAST = (1e9, 0.0)


def solved(layers, rates, *, links=None, nics=None):
    """Topology, throughput, flow and cut of nodes with the rates given; tokens weigh 2 or 10."""
    num_layers = max(end for _, end in layers.values())
    types = {name: make_machine_type(name, num_layers) for name in layers}
    scenario = make_scenario(
        layers, requests=[(0, 1, 1)], types=types, links=links, link=FAST, nics=nics
    )
    topology = make_topology(scenario)
    estimates = {
        node.name: {node.num_layers: ThroughputEstimate(0, 0, 0, rates[node.name])}
        for node in topology.nodes
    }
    table = ThroughputTable("toy", estimates)
    flow = max_flow(topology, table)
    return topology, table, flow, min_cut(topology, table, flow)


def named(topology, bounds):
    """What bounds, by name, in one set."""
    found = {f"compute {topology.name(i)}" for i in bounds.compute}
    found |= {f"in {topology.name(i)}" for i in bounds.inbound}
    found |= {f"out {topology.name(i)}" for i in bounds.outbound}
    links = [topology.links[i] for i in bounds.links]
    return found | {f"{topology.name(a.source)}>{topology.name(a.target)}" for a in links}


def cut_of(*arguments, **options):
    topology, _, _, cut = solved(*arguments, **options)
    return cut.tokens_per_s, named(topology, cut.bounds), named(topology, cut.others)


def test_the_slowest_node_of_a_chain_is_the_cut():
    assert cut_of(CHAIN, {"a": 30.0, "b": 20.0}) == (20.0, {"compute b"}, set())
    assert cut_of(CHAIN, {"a": 20.0, "b": 30.0}) == (20.0, {"compute a"}, set())


def test_a_small_flow_from_a_huge_source_is_cut_all_the_same():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (2, 3)}
    rates = {"a": 1.3, "b": 0.3, "c": 0.7, "d": 1.1}
    value, bounds, others = cut_of(layers, rates)
    assert (value, bounds, others) == (pytest.approx(1.0), {"compute b", "compute c"}, set())


def test_of_equal_cuts_the_last_is_taken_and_the_others_are_told():
    assert cut_of(CHAIN, {"a": 20.0, "b": 20.0}) == (20.0, {"compute b"}, {"compute a"})


def test_what_is_only_used_to_the_full_is_in_no_cut():
    # b is full, but the flow that it cannot take goes through c; d takes all there is.
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (2, 3)}
    rates = {"a": 100.0, "b": 10.0, "c": 60.0, "d": 50.0}
    assert cut_of(layers, rates) == (50.0, {"compute d"}, set())


def test_replicas_are_cut_together():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    rates = {"a": 100.0, "b": 30.0, "c": 20.0}
    assert cut_of(layers, rates) == (50.0, {"compute b", "compute c"}, set())


def test_links_and_interfaces_are_told_apart():
    rates = {"a": 99.0, "b": 99.0}
    links = {(HOST, "a"): FAST, ("a", "b"): (150.0, 0.0), ("b", HOST): FAST}
    assert cut_of(CHAIN, rates, links=links) == (15.0, {"a>b"}, set())
    assert cut_of(CHAIN, rates, nics={"a": 150.0}) == (15.0, {"out a"}, set())
    assert cut_of(CHAIN, rates, nics={"b": 150.0}) == (15.0, {"in b"}, set())
    value, bounds, others = cut_of(CHAIN, rates, nics={HOST: 30.0})
    assert (value, bounds, others) == (15.0, {"in coordinator"}, {"out coordinator"})


def test_a_cut_may_hold_compute_and_links():
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}
    links = {
        (HOST, "a"): FAST,
        ("a", "b"): FAST,
        ("a", "c"): (50.0, 0.0),
        ("b", HOST): FAST,
        ("c", HOST): FAST,
    }
    rates = {"a": 100.0, "b": 30.0, "c": 20.0}
    topology, _, _, cut = solved(layers, rates, links=links)
    assert (cut.tokens_per_s, named(topology, cut.bounds)) == (35.0, {"compute b", "a>c"})
    assert bottleneck_text(topology, cut) == (
        "Max flow 35.0 tokens/s at typical batches, bound by the compute of 1 node at layer 1 (b) "
        "and 1 link (a → c)."
    )
    assert list(elsewhere_text(topology, cut.others)) == []


@pytest.mark.parametrize(
    "name",
    [
        "single24-llama2-70b-helix-offline",
        "single24-llama1-30b-swarm-offline",
        "het42-llama2-70b-helix-offline",
        "het42-llama2-70b-swarm-offline",
        "quickstart",
    ],
)
def test_published_cuts_are_minimal_and_separate(name):
    topology, flow, cut = solve(load_scenario(name))
    assert cut.tokens_per_s == pytest.approx(flow.tokens_per_s, rel=1e-9)
    graph = to_networkx(topology, flow)
    graph.remove_nodes_from([topology.name(index) for index in cut.bounds.compute])
    assert not cut.bounds.links and not cut.bounds.inbound and not cut.bounds.outbound
    assert not any("coordinator" in cycle for cycle in nx.simple_cycles(graph))


def test_others_are_those_whose_loss_is_felt_at_once():
    # An edge is in some minimum cut just if the flow falls by what its capacity falls.
    layers = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (2, 3)}
    rates = {"a": 50.0, "b": 30.0, "c": 20.0, "d": 60.0}
    topology, table, flow, cut = solved(layers, rates)
    graph, source, sink, _ = flow_graph(topology, table)
    felt = set()
    for index, node in enumerate(topology.nodes):
        less = graph.copy()
        less.edges[4 * index + 2, 4 * index + 3]["capacity"] -= 1.0
        if nx.maximum_flow_value(less, source, sink) == flow.tokens_per_s - 1.0:
            felt.add(f"compute {node.name}")
    assert named(topology, cut.bounds) | named(topology, cut.others) == felt
    assert felt == {"compute a", "compute b", "compute c"}


def test_layers_are_told_in_runs():
    assert ranges_text([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
