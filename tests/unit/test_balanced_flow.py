"""Of all maximum flows, the balanced one."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from builders import HOST, fitting_pairs, make_machine_type, make_scenario, make_topology
from scipy.optimize import minimize

from helixsim.control.control_plane import followed_flow
from helixsim.errors import ScenarioError
from helixsim.models.simulation import Simulation
from helixsim.placement.balanced_flow import balanced_flow
from helixsim.placement.flow import flow_graph, max_flow
from helixsim.profiles.throughput import ThroughputEstimate, ThroughputTable
from helixsim.scenario.load import load_scenario

PORTION = 1 / 200
TWINS = {"a": (0, 1), "b": (1, 2), "c": (1, 2), "d": (2, 3)}


class Case:
    """A topology whose nodes compute at the rates given; tokens weigh 2 and 10 bytes."""

    def __init__(self, layers, rates, *, prompt_tokens=10, output_tokens=4, **options):
        num_layers = max(end for _, end in layers.values())
        types = {name: make_machine_type(name, num_layers) for name in layers}
        scenario = make_scenario(layers, requests=[(0, 1, 1)], types=types, **options)
        self.topology = make_topology(scenario)
        self.rates = rates
        self.table = ThroughputTable(
            "toy",
            {
                node.name: {node.num_layers: ThroughputEstimate(0, 0, 0, rates[node.name])}
                for node in self.topology.nodes
            },
        )
        self.lengths = (prompt_tokens, output_tokens)

    def max_flow(self):
        return max_flow(self.topology, self.table)

    def balanced(self):
        return balanced_flow(self.topology, self.table, *self.lengths)

    def by_link(self, flow=None):
        flow = flow or self.balanced()
        return {self.pair(link): flow.link_tokens_per_s[link.index] for link in self.topology.links}

    def pair(self, link):
        return self.topology.name(link.source), self.topology.name(link.target)


def at_home(topology, flow, links):
    return sum(flow.link_tokens_per_s[link.index] for link in links[topology.coordinator])


def check(topology, throughput, flow):
    """A flow is conserved, within every capacity, and a maximum one up to a portion."""
    most = max_flow(topology, throughput)
    assert (flow.tokens_per_s, flow.compute_tokens_per_s) == (
        most.tokens_per_s,
        most.compute_tokens_per_s,
    )
    value = flow.tokens_per_s
    slack = 1e-9 * max(1.0, value)
    graph, *_ = flow_graph(topology, throughput)
    for link in topology.links:
        carried = flow.link_tokens_per_s[link.index]
        capacity = graph[4 * link.source + 1][4 * link.target]["capacity"]
        assert -slack <= carried <= capacity + slack
    for node in topology.nodes:
        into = sum(flow.link_tokens_per_s[link.index] for link in topology.incoming[node.index])
        out_of = sum(flow.link_tokens_per_s[link.index] for link in topology.outgoing[node.index])
        assert into == pytest.approx(out_of, abs=slack)
        m = 4 * node.index
        for a, b in ((m, m + 2), (m + 2, m + 3), (m + 3, m + 1)):
            assert into <= graph[a][b]["capacity"] + slack
    out_of = at_home(topology, flow, topology.outgoing)
    assert out_of == pytest.approx(at_home(topology, flow, topology.incoming), abs=slack)
    assert (1 - PORTION) * value <= out_of <= value + slack


def drawn(seed):
    """A cluster drawn at random: uneven nodes, links and interfaces, ways that start midway."""
    rng = Random(seed)
    num_layers = rng.randint(1, 4)
    layers = {}
    for start in range(num_layers):
        for _ in range(rng.randint(1, 3)):
            layers[f"n{len(layers)}"] = (start, start + 1)
    for _ in range(rng.randint(0, 2)):
        start = rng.randrange(num_layers)
        layers[f"n{len(layers)}"] = (start, rng.randint(start + 1, num_layers))
    links = {
        pair: (10 ** rng.uniform(1, 5), rng.choice([0.0, 0.001, rng.random()]))
        for pair in fitting_pairs(layers, num_layers)
    }
    return Case(
        layers,
        {name: rng.choice([10.0, rng.uniform(1, 100)]) for name in layers},
        links=links,
        nics={name: 10 ** rng.uniform(2, 4) for name in layers if rng.random() < 0.3},
        prompt_tokens=rng.choice([10, 763]),
        output_tokens=rng.choice([4, 232]),
    )


# -- a maximum flow


@pytest.mark.parametrize("seed", range(40))
def test_it_is_a_maximum_flow(seed):
    case = drawn(seed)
    check(case.topology, case.table, case.balanced())


@pytest.mark.parametrize("name", ["geo24-llama2-70b-helix-offline", "quickstart"])
def test_it_is_a_maximum_flow_of_published_clusters(name):
    scenario = load_scenario(name, ["scheduler.flow_split=balanced"])
    topology = make_topology(scenario)
    flow = followed_flow(scenario, topology)
    published = followed_flow(load_scenario(name), topology)
    assert flow.tokens_per_s == published.tokens_per_s
    for node in topology.nodes:
        into = sum(flow.link_tokens_per_s[link.index] for link in topology.incoming[node.index])
        assert into <= flow.compute_tokens_per_s[node.index] * (1 + 1e-9)
    assert at_home(topology, flow, topology.outgoing) == pytest.approx(
        flow.tokens_per_s, rel=PORTION
    )


def test_the_same_twice():
    case, again = drawn(7), drawn(7)
    assert case.balanced() == again.balanced()


# -- balanced


def test_twins_share_evenly():
    case = Case(TWINS, {"a": 60.0, "b": 50.0, "c": 50.0, "d": 99.0})
    flows = case.by_link()
    assert flows["a", "b"] == pytest.approx(30.0, abs=60 * PORTION)
    assert flows["a", "c"] == pytest.approx(30.0, abs=60 * PORTION)
    assert case.by_link(case.max_flow())["a", "b"] != pytest.approx(30.0, abs=1.0)


def test_unequal_nodes_share_by_what_they_carry():
    case = Case(TWINS, {"a": 60.0, "b": 80.0, "c": 40.0, "d": 99.0})
    flows = case.by_link()
    assert flows["a", "b"] == pytest.approx(40.0, abs=60 * PORTION)
    assert flows["a", "c"] == pytest.approx(20.0, abs=60 * PORTION)


def test_a_full_node_leaves_the_rest_to_its_neighbour():
    # Sharing in proportion would be even, but c's interface takes 10 tokens of 10 bytes.
    case = Case(TWINS, {"a": 50.0, "b": 50.0, "c": 50.0, "d": 99.0}, nics={"c": 100.0})
    flows = case.by_link()
    assert flows["a", "c"] == pytest.approx(50 * 10 / 60, abs=50 * PORTION)
    case = Case(TWINS, {"a": 60.0, "b": 50.0, "c": 50.0, "d": 99.0}, nics={"c": 100.0})
    flows = case.by_link()
    assert (flows["a", "b"], flows["a", "c"]) == (pytest.approx(50.0), pytest.approx(10.0))


SQUARE = {"a": (0, 1), "b": (0, 1), "c": (1, 2), "d": (1, 2)}
RATES = dict.fromkeys(SQUARE, 50.0)


def crossing(*, far_latency_s=0.0, far_bandwidth=1e9):
    near, far = (1e9, 0.0), (far_bandwidth, far_latency_s)
    links = dict.fromkeys(fitting_pairs(SQUARE, 2), near)
    return links | {("a", "d"): far, ("b", "c"): far}


@pytest.mark.parametrize(
    "slow", [{"far_latency_s": 0.1}, {"far_bandwidth": 1e3}], ids=["latency", "bandwidth"]
)
def test_slow_links_are_not_taken_where_there_is_another_way(slow):
    flows = Case(SQUARE, RATES, links=crossing(**slow)).by_link()
    assert flows["a", "d"] + flows["b", "c"] <= 100 * 2 * PORTION
    assert flows["a", "c"] == pytest.approx(50.0, abs=100 * 2 * PORTION)


def test_slow_links_are_taken_where_the_maximum_needs_them():
    rates = {"a": 50.0, "b": 20.0, "c": 30.0, "d": 40.0}
    flows = Case(SQUARE, rates, links=crossing(far_latency_s=100.0)).by_link()
    assert flows["a", "d"] == pytest.approx(20.0, abs=70 * PORTION)
    assert flows["b", "c"] == pytest.approx(0.0, abs=70 * PORTION)


def cost(case, flows):
    """The sum that is to be least, written out once more."""
    prompt_tokens, output_tokens = case.lengths
    nodes = case.topology.nodes
    prompt_s = sum(node.num_layers * prompt_tokens for node in nodes) / len(nodes)
    total = 0.0
    for node in nodes:
        into = sum(flow for (_, target), flow in flows.items() if target == node.name)
        total += prompt_s * into**2 / (2 * case.rates[node.name])
    for link in case.topology.links:
        flow = flows[case.pair(link)]
        capacity = link.bandwidth_bytes_per_s / link.bytes_per_token
        delay = link.latency_s + (prompt_tokens + output_tokens) / (1 + output_tokens) / capacity
        total += prompt_tokens / capacity * flow**2 / (2 * capacity) + delay * flow
    return total


def ways(case, machine=HOST):
    """All ways from a machine home, as tuples of links."""
    for link in case.topology.links:
        source, target = case.pair(link)
        if source == machine:
            rest = [()] if target == HOST else ways(case, target)
            yield from ((link, *way) for way in rest)


def least_cost(case):
    """The least cost of a maximum flow, by a general optimiser: shares of ways add up to 1."""
    value = case.max_flow().tokens_per_s
    all_ways = list(ways(case))

    def flows(shares):
        found = dict.fromkeys(map(case.pair, case.topology.links), 0.0)
        for share, way in zip(shares, all_ways, strict=True):
            for link in way:
                found[case.pair(link)] += share * value
        return found

    def room(shares):
        taken = flows(shares)
        nodes = [
            rate - sum(flow for (_, target), flow in taken.items() if target == name)
            for name, rate in case.rates.items()
        ]
        links = [
            link.bandwidth_bytes_per_s / link.bytes_per_token - taken[case.pair(link)]
            for link in case.topology.links
        ]
        # A hair of room, or full nodes leave the optimiser nowhere to go.
        return np.array([*nodes, *links]) / value + 1e-6

    found = minimize(
        lambda shares: cost(case, flows(shares)) / value,
        np.full(len(all_ways), 1 / len(all_ways)),
        bounds=[(0, 1)] * len(all_ways),
        constraints=[
            {"type": "eq", "fun": lambda shares: sum(shares) - 1},
            {"type": "ineq", "fun": room},
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-9},
    )
    assert found.success, found.message
    return found.fun * value


@pytest.mark.parametrize(
    "case",
    [
        Case(TWINS, {"a": 60.0, "b": 80.0, "c": 40.0, "d": 99.0}),
        Case(SQUARE, RATES | {"b": 20.0}, links=crossing(far_latency_s=1.0)),
        Case(SQUARE, RATES | {"b": 20.0, "d": 30.0}, links=crossing(far_bandwidth=300.0)),
        Case(
            {"a": (0, 1), "b": (0, 2), "c": (1, 3), "d": (2, 3), "e": (1, 2)},
            {"a": 40.0, "b": 25.0, "c": 30.0, "d": 35.0, "e": 20.0},
            link=(2000.0, 0.05),
        ),
    ],
    ids=["twins", "far", "slow", "lattice"],
)
def test_its_cost_is_the_least(case):
    least = least_cost(case)
    assert cost(case, case.by_link()) == pytest.approx(least, rel=2 * PORTION)


def test_nothing_gets_through():
    links = {(HOST, "a"): (1e9, 0.0), ("b", HOST): (1e9, 0.0), ("a", "b"): (1e9, 0.0)}
    case = Case({"a": (0, 1), "b": (1, 2)}, {"a": 0.0, "b": 10.0}, links=links)
    assert case.balanced().tokens_per_s == 0
    assert set(case.by_link().values()) == {0.0}


@pytest.mark.parametrize("prompt_tokens", [10**6, 10**9, 10**12])
def test_rounding_of_huge_costs_does_not_go_round_in_circles(prompt_tokens):
    layers = {f"n{number}": (number % 3, number % 3 + 1) for number in range(9)}
    rng = Random(0)
    rates = {name: rng.uniform(3, 9) for name in layers}
    case = Case(layers, rates, prompt_tokens=prompt_tokens)
    assert case.balanced().tokens_per_s == pytest.approx(case.max_flow().tokens_per_s)


# -- in a scenario


def test_the_preset_says_which_split_is_the_default(load):
    assert load().scheduler.flow_split == "balanced"
    scenario = load(None, "scheduler.preset=published")
    assert scenario.scheduler.flow_split == "published"
    simulation = Simulation(scenario)
    assert simulation.flow == followed_flow(scenario, simulation.topology)
    balanced = load(None, "scheduler.flow_split=balanced")
    assert balanced.scheduler.flow_split == "balanced"
    assert balanced.digest != scenario.digest


def test_a_scenario_has_its_flow_balanced():
    published = load_scenario("quickstart", ["scheduler.flow_split=published"])
    balanced = load_scenario("quickstart", ["scheduler.flow_split=balanced"])
    topology = make_topology(published)

    def halves(scenario):
        flow = followed_flow(scenario, topology)
        names = ("l4-pair-0", "l4-pair-1")
        return [
            sum(
                flow.link_tokens_per_s[link.index]
                for link in topology.links
                if topology.name(link.target) == name
            )
            / flow.tokens_per_s
            for name in names
        ]

    assert halves(balanced) == pytest.approx([0.5, 0.5], abs=2 * PORTION)
    assert halves(published) != pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("value", ["even", "Balanced", "true", "1"])
def test_other_splits_are_refused(load, value):
    with pytest.raises(ScenarioError, match=r"scheduler\.flow_split: .*'published'.*'balanced'"):
        load(None, f"scheduler.flow_split={value}")


def test_each_of_many_replicas_gets_its_share():
    """Sixty alike replicas: in a hundred portions, one would get twice as much as another."""
    names = [f"n{number}" for number in range(60)]
    case = Case(dict.fromkeys(names, (0, 1)), dict.fromkeys(names, 10.0))
    flow = case.balanced()
    assert flow.tokens_per_s == pytest.approx(600.0)
    shares = [flow.link_tokens_per_s[link.index] for link in case.topology.links]
    assert shares == pytest.approx([10.0] * 120, rel=1e-6)
