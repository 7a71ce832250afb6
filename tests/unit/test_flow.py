"""The flow graph and its maximum flow."""

from __future__ import annotations

import networkx as nx
import pytest
from builders import HOST, make_machine_type, make_scenario, make_topology
from networkx.algorithms.flow import boykov_kolmogorov, dinitz, edmonds_karp

from helixsim.models.simulation import Simulation
from helixsim.placement.flow import max_flow
from helixsim.profiles.throughput import ThroughputEstimate, ThroughputTable
from helixsim.scenario.load import load_scenario

PUBLISHED = {
    "single24-llama2-70b-helix-offline": 1289.5558,
    "geo24-llama2-70b-helix-offline": 1212.1768,
    "het42-llama2-70b-helix-offline": 4137.5476,
}


def flow_of(layers, rates, *, links=None, link=(1e9, 0.0), nics=None):
    """The flow where nodes compute at the rates given; tokens weigh 2 and 10 bytes."""
    num_layers = max(end for _, end in layers.values())
    types = {name: make_machine_type(name, num_layers) for name in layers}
    scenario = make_scenario(
        layers, requests=[(0, 1, 1)], types=types, links=links, link=link, nics=nics
    )
    topology = make_topology(scenario)
    table = ThroughputTable(
        "toy",
        {
            node.name: {node.num_layers: ThroughputEstimate(0, 0, 0, rates[node.name])}
            for node in topology.nodes
        },
    )
    flow = max_flow(topology, table)
    by_link = {
        (topology.name(a.source), topology.name(a.target)): flow.link_tokens_per_s[a.index]
        for a in topology.links
    }
    return flow, by_link


def test_the_slowest_node_of_a_chain_limits_it():
    flow, by_link = flow_of({"a": (0, 1), "b": (1, 2)}, {"a": 30.0, "b": 20.0})
    assert flow.tokens_per_s == 20.0
    assert by_link == {(HOST, "a"): 20.0, ("a", "b"): 20.0, ("b", HOST): 20.0}
    assert flow.compute_tokens_per_s == (30.0, 20.0)


def test_replicas_add_up():
    flow, by_link = flow_of(
        {"a": (0, 1), "b": (1, 2), "c": (1, 2)}, {"a": 100.0, "b": 30.0, "c": 20.0}
    )
    assert flow.tokens_per_s == 50.0
    assert (by_link["a", "b"], by_link["a", "c"]) == (30.0, 20.0)


@pytest.mark.parametrize("rate", [20.0, 1750.3, 1e-3])
@pytest.mark.parametrize("bytes_per_s", [1.25e11, 1.25e15, 1.25e17, 1.25e20, 1e30])
def test_networks_without_practical_limit_do_not_disturb_the_flow(rate, bytes_per_s):
    """Beside 1e9 Gbit/s, floats lose the capacity of a node, and networkx raised KeyError."""
    names = ("a", "b", "c", "coordinator")
    layers, rates = {"a": (0, 1), "b": (1, 2), "c": (1, 2)}, {"a": 3 * rate, "b": rate, "c": rate}
    nics = dict.fromkeys(names, bytes_per_s)
    flow, by_link = flow_of(layers, rates, link=(bytes_per_s, 0.0), nics=nics)
    assert flow.tokens_per_s == pytest.approx(2 * rate, rel=1e-6)
    assert by_link["a", "b"] == pytest.approx(rate, rel=1e-6)


def test_a_link_carries_tokens_by_their_weight():
    links = {(HOST, "a"): (1e9, 0.0), ("a", "b"): (150.0, 0.0), ("b", HOST): (1e9, 0.0)}
    flow, _ = flow_of({"a": (0, 1), "b": (1, 2)}, {"a": 99.0, "b": 99.0}, links=links)
    assert flow.tokens_per_s == 15.0  # 150 bytes/s of 10 bytes a token
    links = {(HOST, "a"): (30.0, 0.0), ("a", "b"): (1e9, 0.0), ("b", HOST): (1e9, 0.0)}
    flow, _ = flow_of({"a": (0, 1), "b": (1, 2)}, {"a": 99.0, "b": 99.0}, links=links)
    assert flow.tokens_per_s == 15.0  # 2 bytes a token to and from the coordinator


@pytest.mark.parametrize(
    ("nics", "value"),
    [
        ({HOST: 30.0}, 15.0),  # only token ids
        ({"a": 150.0}, 15.0),  # out to b: activations; in from the coordinator: token ids
        ({"b": 150.0}, 15.0),  # in from a
        ({"a": 1000.0, "b": 1000.0}, 99.0),
    ],
)
def test_network_interfaces_carry_tokens_by_their_weight(nics, value):
    flow, _ = flow_of({"a": (0, 1), "b": (1, 2)}, {"a": 99.0, "b": 99.0}, nics=nics)
    assert flow.tokens_per_s == value


def test_an_interface_between_coordinator_and_nodes_counts_everything_as_heavy():
    # b is reached from the coordinator too: its inbound side carries 10 bytes a token.
    flow, _ = flow_of({"a": (0, 1), "b": (0, 2)}, {"a": 99.0, "b": 99.0}, nics={"b": 150.0})
    assert flow.tokens_per_s == 15.0


def test_partial_inference_adds_ways():
    layers = {"a": (0, 2), "b": (2, 4), "c": (1, 4)}
    rates = {"a": 50.0, "b": 30.0, "c": 40.0}
    flow, by_link = flow_of(layers, rates)
    assert flow.tokens_per_s == 50.0
    assert by_link["a", "b"] + by_link["a", "c"] == 50.0
    without = {(HOST, "a"): (1e9, 0.0), ("a", "b"): (1e9, 0.0), ("b", HOST): (1e9, 0.0)}
    assert flow_of(layers, rates, links=without)[0].tokens_per_s == 30.0


def independent_graph(simulation):
    """The flow graph once more, with names for nodes, as the paper draws it."""
    topology, compute = simulation.topology, simulation.flow.compute_tokens_per_s
    llm = topology.llm
    heavy = llm.token_bytes + llm.activation_bytes_per_token
    graph = nx.DiGraph()
    nic = topology.coordinator_nic
    graph.add_edge("source", "host out", capacity=nic.outbound_bytes_per_s / llm.token_bytes)
    graph.add_edge("host in", "sink", capacity=nic.inbound_bytes_per_s / llm.token_bytes)

    def end(machine, side):
        return f"{'host' if machine == topology.coordinator else machine} {side}"

    for node, rate in zip(topology.nodes, compute, strict=True):
        sources = {link.source for link in topology.incoming[node.index]}
        targets = {link.target for link in topology.outgoing[node.index]}
        home = {topology.coordinator}
        inbound = node.nic.inbound_bytes_per_s / (llm.token_bytes if sources <= home else heavy)
        outbound = node.nic.outbound_bytes_per_s / (llm.token_bytes if targets <= home else heavy)
        least = min(inbound, rate, outbound)
        graph.add_edge(end(node.index, "in"), end(node.index, "out"), capacity=least)
    for link in topology.links:
        at_home = topology.coordinator in (link.source, link.target)
        graph.add_edge(
            end(link.source, "out"),
            end(link.target, "in"),
            capacity=link.bandwidth_bytes_per_s / (llm.token_bytes if at_home else heavy),
        )
    return graph


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_placements(name):
    scenario = load_scenario(name)
    simulation = Simulation(scenario)
    value = simulation.flow.tokens_per_s
    assert value == pytest.approx(PUBLISHED[name], abs=5e-5)
    graph = independent_graph(simulation)
    for algorithm in (edmonds_karp, dinitz, boykov_kolmogorov):
        other = nx.maximum_flow_value(graph, "source", "sink", flow_func=algorithm)
        assert other == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_flow_of_published_placements_is_conserved(name):
    simulation = Simulation(load_scenario(name))
    topology, flows = simulation.topology, simulation.flow.link_tokens_per_s

    def total(links):
        return sum(flows[link.index] for link in links)

    home = topology.coordinator
    assert total(topology.outgoing[home]) == pytest.approx(simulation.flow.tokens_per_s)
    for node in topology.nodes:
        inflow = total(topology.incoming[node.index])
        assert inflow == pytest.approx(total(topology.outgoing[node.index]), abs=1e-6)
        assert inflow <= simulation.flow.compute_tokens_per_s[node.index] + 1e-6
