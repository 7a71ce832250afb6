"""Several front ends: where requests enter, the flow from each, routes that lead back."""

from dataclasses import replace
from random import Random

import pytest
from builders import (
    iterations,
    make_inputs,
    make_machine_type,
    make_scenario,
    make_topology,
    offline,
    prompt,
)

from helixsim.cluster import Cluster, FrontEnd, LinkRule, Nic, Node, RuleNetwork, Spread
from helixsim.control.control_plane import flow_without
from helixsim.control.conversations import Conversations, NewTurn, Start
from helixsim.control.entrances import Entrances
from helixsim.control.load import Arrival
from helixsim.control.routing import POLICIES
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import Rejection, complete_route
from helixsim.errors import NoRouteError
from helixsim.metrics.summary_text import summary_text
from helixsim.models.simulation import Simulation, simulate
from helixsim.placement.balanced_flow import balanced_flow
from helixsim.placement.cut import min_cut
from helixsim.placement.export import to_networkx
from helixsim.placement.flow import max_flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import build_topology, without
from helixsim.profiles.machine import LatencyProfile
from helixsim.profiles.throughput import ThroughputEstimate, ThroughputTable
from helixsim.report.page import report_page
from helixsim.scenario.coordinator_alone import with_coordinator_alone
from helixsim.scenario.resolved import Fault, Faults, Scenario, Slo

ACROSS_S = 0.03
FAST = Nic(1e15, 1e15)
EAST, WEST = (FrontEnd(FAST, region, f"front-end-{region}", 0.5) for region in ("east", "west"))


def rule(latency_s: float) -> LinkRule:
    return LinkRule(Spread(1e15), Spread(latency_s))


ACROSS = rule(ACROSS_S)


def two_regions(
    *front_ends: FrontEnd,
    layers: dict[str, tuple[int, int]] | None = None,
    across: LinkRule | None = ACROSS,
    **settings: object,
) -> Scenario:
    """Nodes in the region with which their name begins; 30 ms lie between regions."""
    layers = layers or {"east": (0, 2), "west": (0, 2)}
    flat = LatencyProfile((0, 1, 1000), (0.0, 0.1, 0.1))
    kinds = {
        name: make_machine_type(
            name, max(end for _, end in layers.values()), prefill=flat, decode=flat
        )
        for name in layers
    }
    scenario = make_scenario(layers, types=kinds, **({"requests": [(0.0, 1, 1)]} | settings))
    regions = {name: name[:4] for name in layers}
    nodes = tuple(Node(name, name, FAST, 1e9, region) for name, region in regions.items())
    regions |= {front_end.name: front_end.region for front_end in front_ends}
    network = RuleNetwork(regions, within=rule(0.0), across=across)
    return replace(
        scenario,
        cluster=Cluster(nodes, front_ends, network),
        placement=Placement(dict(layers)),
    )


def from_regions(scenario: Scenario, *regions: str) -> Scenario:
    """The scenario with one request of 4 tokens from each region, all at different times."""
    trace = scenario.workload.trace
    requests = tuple(
        replace(request, region=region)
        for request, region in zip(trace.requests, regions, strict=True)
    )
    return replace(
        scenario, workload=replace(scenario.workload, trace=replace(trace, requests=requests))
    )


def rates(scenario: Scenario, **by_node: float) -> ThroughputTable:
    """Tokens per second of each node, however many layers it holds."""
    layers = range(1, scenario.llm.num_layers + 1)
    return ThroughputTable(
        scenario.llm.name,
        {
            name: {k: ThroughputEstimate(0, 0, 0, rate) for k in layers}
            for name, rate in by_node.items()
        },
    )


def with_shares(east: float) -> tuple[FrontEnd, FrontEnd]:
    return replace(EAST, share=east), replace(WEST, share=1 - east)


# -- where requests enter


class Listed:
    """A load generator of given arrivals, each after the end of the one before."""

    def __init__(self, arrivals):
        self.arrivals = list(arrivals)

    def opening(self):
        return iter(())

    def later(self):
        yield self.arrivals.pop(0)

    def after_prompt(self, now, share, index):
        return None

    def after_end(self, now, share, index):
        return self.arrivals.pop(0) if self.arrivals else None


def entered(cluster, *arrivals, seed=0):
    entrances = Entrances(Listed(arrivals), cluster, Random(seed))
    found = list(entrances.later())
    while (arrival := entrances.after_end(0.0, None, len(found) - 1)) is not None:
        found.append(arrival)
    return [arrival.front_end for arrival in found]


def test_a_request_enters_at_the_front_end_of_its_region_or_at_the_nearest():
    rules = {("far", "west"): rule(0.01), ("east", "far"): rule(0.02)}
    network = RuleNetwork({}, between_regions=rules, within=rule(0.0))
    cluster = Cluster((), (EAST, WEST), network)
    arrivals = [Arrival(0.0, 1, 1, region=region) for region in ("west", "east", "far", "nowhere")]
    assert entered(cluster, *arrivals) == [1, 0, 1, 0]


def test_a_turn_of_a_conversation_enters_where_the_one_before_did():
    cluster = two_regions(EAST, WEST).cluster
    first = Arrival(0.0, 1, 1, region="west")
    second, third = (Arrival(0.0, 1, 1, follows=turn) for turn in (0, 1))
    assert entered(cluster, first, second, third) == [1, 1, 1]


def test_the_turns_of_conversations_stay_at_their_front_end():
    turns = (NewTurn(1.0, 4, 4), NewTurn(1.0, 4, 4))
    starts = [Start(Arrival(float(number), 8, 8), turns) for number in range(20)]
    talks = Conversations(starts, end_s=1e9)
    entrances = Entrances(talks, two_regions(EAST, WEST).cluster, Random(0))
    firsts = [arrival.front_end for arrival in entrances.later()]
    assert set(firsts) == {0, 1}
    seconds = [entrances.after_end(9.0, None, number).front_end for number in reversed(range(20))]
    thirds = [entrances.after_end(9.0, None, 20 + number).front_end for number in range(20)]
    assert firsts == seconds[::-1] == thirds[::-1]


def test_other_requests_are_drawn_by_the_shares():
    cluster = two_regions(*with_shares(0.25)).cluster
    drawn = entered(cluster, *(Arrival(0.0, 1, 1) for _ in range(4000)))
    assert 0.22 < drawn.count(0) / 4000 < 0.28
    assert drawn == entered(cluster, *(Arrival(0.0, 1, 1) for _ in range(4000)))
    assert drawn != entered(cluster, *(Arrival(0.0, 1, 1) for _ in range(4000)), seed=1)


def test_the_same_requests_come_however_many_front_ends_there_are():
    lengths = [(3, 2), (5, 4), (7, 1), (2, 6)]
    settings = {"workload": offline(lengths, initial_requests=3), "duration_s": 4.0}
    one = simulate(two_regions(replace(EAST, share=1.0), across=rule(0.0), **settings)).requests
    two = simulate(two_regions(EAST, WEST, across=rule(0.0), **settings)).requests
    columns = ["prompt_tokens", "output_tokens"]
    assert min(len(one), len(two)) > 20
    assert one[columns].head(20).equals(two[columns].head(20))
    assert "front_end" not in one
    assert set(two["front_end"]) == {"front-end-east", "front-end-west"}


# -- topology and flow


def test_front_ends_are_the_machines_after_the_nodes():
    topology = make_topology(two_regions(EAST, WEST))
    assert topology.coordinator == 2
    assert list(topology.front_end_machines) == [2, 3]
    names = [topology.name(machine) for machine in range(topology.num_machines)]
    assert names == ["east", "west", "front-end-east", "front-end-west"]
    pairs = [(link.source, link.target) for link in topology.links]
    assert pairs == [(2, 0), (2, 1), (3, 0), (3, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert {link.bytes_per_token for link in topology.links} == {2.0}


def test_a_front_end_without_a_route_is_named():
    with pytest.raises(NoRouteError, match="reach only layer 0 from the front end front-end-west"):
        make_topology(two_regions(EAST, WEST, layers={"east": (0, 2)}, across=None))


def test_a_front_end_without_a_way_back_is_named():
    scenario = two_regions(EAST, WEST)
    links = [("coordinator", "east"), ("east", "coordinator"), (WEST.name, "east")]
    placement = Placement({"east": (0, 2)}, tuple(links))
    cluster = scenario.cluster
    with pytest.raises(NoRouteError, match="no route leads back to the front end front-end-west"):
        build_topology(scenario.llm, cluster, placement, scenario.machine_types)


@pytest.mark.parametrize(
    ("across", "east_share", "total"),
    [
        # Alone, each node serves its own region: 0.5 F <= 30, or 0.8 F <= 100.
        (None, 0.5, 60.0),
        (None, 0.8, 125.0),
        # Together they serve all, whoever sends it.
        (ACROSS, 0.5, 130.0),
        (ACROSS, 0.1, 130.0),
        # 20 bytes/s across are 10 tokens/s: 0.5 F <= 30 + 10, then 0.2 F <= 30 + 10 does not
        # matter: 0.8 F <= 100 + 10.
        (LinkRule(Spread(20.0), Spread(0.03)), 0.5, 80.0),
        (LinkRule(Spread(20.0), Spread(0.03)), 0.8, 130.0),
    ],
)
@pytest.mark.parametrize("is_balanced", [False, True])
def test_the_flow_is_the_greatest_in_which_each_has_its_share(
    across, east_share, total, is_balanced
):
    scenario = two_regions(*with_shares(east_share), across=across)
    topology, table = make_topology(scenario), rates(scenario, east=100.0, west=30.0)
    flow = balanced_flow(topology, table, 10, 4) if is_balanced else max_flow(topology, table)
    assert flow.tokens_per_s == pytest.approx(total)
    for home, share in zip(topology.front_end_machines, (east_share, 1 - east_share), strict=True):
        for links in (topology.outgoing[home], topology.incoming[home]):
            tokens_per_s = sum(flow.link_tokens_per_s[link.index] for link in links)
            assert tokens_per_s == pytest.approx(total * share)
    through = [
        sum(flow.link_tokens_per_s[link.index] for link in topology.incoming[node])
        for node in (0, 1)
    ]
    assert through[0] <= 100 * (1 + 1e-6) and through[1] <= 30 * (1 + 1e-6)


def test_the_balanced_flow_keeps_requests_in_their_region():
    scenario = two_regions(EAST, WEST)
    topology = make_topology(scenario)
    flow = balanced_flow(topology, rates(scenario, east=100.0, west=100.0), 10, 4)
    by_link = {
        (topology.name(link.source), topology.name(link.target)): rate
        for link, rate in zip(topology.links, flow.link_tokens_per_s, strict=True)
    }
    assert by_link["front-end-east", "east"] == pytest.approx(100)
    assert by_link["west", "front-end-west"] == pytest.approx(100)
    assert by_link["front-end-east", "west"] == pytest.approx(0)


def test_the_bottleneck_is_what_binds_beside_the_shares():
    scenario = two_regions(EAST, WEST, across=None)
    topology, table = make_topology(scenario), rates(scenario, east=100.0, west=30.0)
    cut = min_cut(topology, table, max_flow(topology, table))
    assert cut.tokens_per_s == pytest.approx(60)
    assert cut.bounds.compute == (1,)
    assert len(cut.bounds) == 1


def test_the_flow_without_a_node_is_shared_by_the_front_ends_that_still_have_a_route():
    scenario = two_regions(EAST, WEST, across=None)
    topology = make_topology(scenario)
    flow = flow_without(scenario, topology, frozenset({1}))
    carrying = [link for link in topology.links if flow.link_tokens_per_s[link.index] > 0]
    assert [(link.source, link.target) for link in carrying] == [(2, 0), (0, 2)]
    with pytest.raises(NoRouteError):
        without(topology, frozenset({0, 1}))


def test_the_graph_has_every_front_end():
    scenario = two_regions(EAST, WEST)
    topology, table = make_topology(scenario), rates(scenario, east=100.0, west=100.0)
    graph = to_networkx(topology, balanced_flow(topology, table, 10, 4))
    assert list(graph) == ["east", "west", "front-end-east", "front-end-west"]
    there = graph.nodes["front-end-west"]
    assert (there["type"], there["region"]) == ("front end", "west")
    assert there["flow_tokens_per_s"] == pytest.approx(100)


# -- routes


@pytest.mark.parametrize("name", ["maxflow", "adaptive", "swarm", "least_kv", "prefix_aware"])
@pytest.mark.parametrize("front_end", [0, 1])
def test_a_route_leads_only_over_nodes_from_which_its_front_end_is_reached(name, front_end):
    # Each may send to both nodes, and each node sends back to its own region only.
    scenario = two_regions(EAST, WEST)
    ways = [(f.name, node) for f in (EAST, WEST) for node in ("east", "west")]
    links = (*ways, ("east", EAST.name), ("west", WEST.name))
    inputs = make_inputs(replace(scenario, placement=Placement(scenario.placement.layers, links)))
    policy = POLICIES.make(name, inputs)
    for index in range(4):
        request = prompt(4, index)
        request.front_end = front_end
        assert policy.admit(request) is None
        policy.view = None
        if name not in ("maxflow", "adaptive"):
            chosen = policy.choose(inputs.topology.front_end_machine(front_end), request)
            assert chosen.target == front_end
        else:
            assert [stage.node for stage in request.route.stages] == [front_end]


def test_the_last_hop_leads_home_whatever_the_flow_says():
    scenario = two_regions(EAST, WEST, layers={"east": (0, 2)})
    topology = make_topology(scenario)
    flow = max_flow(topology, rates(scenario, east=100.0))
    inputs = replace(make_inputs(scenario), flow=flow)
    policy = MaxFlowPolicy(inputs)
    for front_end, home in enumerate(topology.front_end_machines):
        request = prompt(4, front_end)
        request.front_end = front_end
        assert policy.admit(request) is None
        assert request.route.links[-1].target == home
        assert policy.link_bandwidth(request.route.links[-1]) > 1


def test_front_ends_take_turns_by_themselves():
    # From each front end, three of four requests go to its own node.
    scenario = two_regions(EAST, WEST)
    flows = {
        (EAST.name, "east"): 3.0,
        (EAST.name, "west"): 1.0,
        (WEST.name, "west"): 3.0,
        (WEST.name, "east"): 1.0,
    }
    policy = MaxFlowPolicy(make_inputs(scenario, flows))
    taken = {0: [], 1: []}
    for index in range(16):
        request = prompt(4, index)
        request.front_end = index // 4 % 2
        policy.admit(request)
        taken[request.front_end].append(request.route.stages[0].node)
    assert taken[0].count(0) == 6 and taken[1].count(1) == 6


def test_a_front_end_that_has_lost_its_routes_rejects_and_others_do_not():
    scenario = two_regions(EAST, WEST, across=None)
    inputs = make_inputs(scenario)
    flow = flow_without(scenario, inputs.topology, frozenset({1}))
    for name in ("maxflow", "swarm", "random"):
        policy = POLICIES.make(name, inputs)
        policy.reroute(flow, frozenset({1}))
        for front_end, answer in enumerate((None, Rejection.NODES)):
            request = prompt(4, front_end)
            request.front_end = front_end
            assert policy.admit(request) is answer, name


@pytest.mark.parametrize("name", ["random", "shortest_queue", "swarm"])
def test_a_route_found_hop_by_hop_ends_at_its_front_end(name):
    scenario = two_regions(
        EAST, WEST, layers={"east-0": (0, 1), "west-0": (0, 1), "west-1": (1, 2)}
    )
    inputs = make_inputs(scenario)
    inputs.view.nodes = Simulation(scenario).nodes
    policy = POLICIES.make(name, inputs)
    request = prompt(4)
    request.front_end = 1
    assert policy.admit(request) is None
    assert len(complete_route(policy, inputs.topology, request).stages) == 2


# -- times by hand


def one_at_a_time(*front_ends: FrontEnd, layers=None, policy="maxflow") -> Scenario:
    """A request from the east and, later, one from the west: 4 tokens and 3 of answer."""
    scenario = two_regions(
        *front_ends,
        layers=layers,
        requests=[(0.0, 4, 3), (50.0, 4, 3)],
        policy=policy,
        duration_s=100.0,
    )
    return from_regions(scenario, "east", "west")


def pass_seconds(scenario: Scenario) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {0: [], 1: []}
    for request, _, start, end in iterations(simulate(scenario, record_iterations=True)):
        found[request].append(end - start)
    return found


# Two layers of 0.1 s; a single decode takes twice as long. There and back again are 60 ms.
NEAR = [0.2, 0.4, 0.4, 0.4]
FAR = [seconds + 2 * ACROSS_S for seconds in NEAR]
ONLY_WEST = {"west": (0, 2)}


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random", "shortest_queue", "least_kv"])
def test_every_pass_goes_from_its_front_end_and_back(policy):
    alone = replace(EAST, share=1.0)
    seconds = pass_seconds(one_at_a_time(alone, layers=ONLY_WEST, policy=policy))
    assert seconds[0] == pytest.approx(FAR, abs=1e-6)
    assert seconds[1] == pytest.approx(FAR, abs=1e-6)
    seconds = pass_seconds(one_at_a_time(EAST, WEST, layers=ONLY_WEST, policy=policy))
    assert seconds[0] == pytest.approx(FAR, abs=1e-6)
    assert seconds[1] == pytest.approx(NEAR, abs=1e-6)


def test_the_summary_has_figures_of_each_front_end():
    # First tokens after 0.2 s, and 60 ms more from the east; a limit of 0.23 s lies between.
    scenario = one_at_a_time(EAST, WEST, layers=ONLY_WEST)
    result = simulate(replace(scenario, slos=(Slo(name="fast", ttft_s=0.23),)))
    found = result.summary["front_ends"]
    assert list(found) == [EAST.name, WEST.name]
    for name, ttft_s, attained in ((EAST.name, FAR[0], 0.0), (WEST.name, NEAR[0], 1.0)):
        figures = found[name]
        assert (figures["requests"]["arrived"], figures["requests"]["completed"]) == (1, 1)
        assert figures["ttft_s"]["mean"] == pytest.approx(ttft_s, abs=1e-6)
        assert figures["slo"]["fast"]["attainment"] == attained
    assert (
        "front end front-end-east: 1 arrived, 1 completed, 0 rejected; first token: median "
        "0.260 s, p95 0.260 s; per output token: median 0.460 s, p95 0.460 s; SLO fast 0.0%"
    ) in summary_text(result.summary).splitlines()
    page = report_page({"run": result})
    assert "<th>Front end</th>" in page
    assert "<td>front-end-west</td>" in page
    alone = one_at_a_time(replace(EAST, share=1.0), layers=ONLY_WEST)
    assert "front_ends" not in simulate(alone).summary


def test_with_a_replica_in_each_region_no_one_waits_for_the_other():
    scenario = one_at_a_time(EAST, WEST)
    balanced = replace(scenario.scheduler, flow_split="balanced")
    seconds = pass_seconds(replace(scenario, scheduler=balanced))
    assert seconds[0] == pytest.approx(NEAR, abs=1e-6)
    assert seconds[1] == pytest.approx(NEAR, abs=1e-6)


def looping(scenario: Scenario) -> Scenario:
    return replace(
        scenario,
        physics="calibrated",
        scheduler=replace(scenario.scheduler, node="vllm"),
    )


@pytest.mark.parametrize("layers", [ONLY_WEST, {"west-0": (0, 1), "west-1": (1, 2)}])
def test_where_decodes_loop_only_the_way_there_and_back_again_is_paid(layers):
    times = simulate(looping(one_at_a_time(EAST, WEST, layers=layers))).requests
    east, west = times.itertuples()
    assert (east.front_end, west.front_end) == (EAST.name, WEST.name)
    assert east.ttft_s - west.ttft_s == pytest.approx(2 * ACROSS_S, abs=1e-6)
    assert east.e2e_s - west.e2e_s == pytest.approx(2 * ACROSS_S, abs=1e-6)
    assert east.tpot_s == pytest.approx(west.tpot_s, abs=1e-6)


def test_a_token_that_has_no_link_back_goes_over_its_own_front_end():
    # The nodes are linked one way, so the next decode begins with a token over a front end.
    layers = {"west-0": (0, 1), "west-1": (1, 2)}
    scenario = looping(one_at_a_time(EAST, WEST, layers=layers))
    network = scenario.cluster.network
    one_way = replace(network, links={}, within=None, across=None, between_regions={})
    rules = {
        (a, b): rule(0.0 if network.regions[a] == network.regions[b] else ACROSS_S)
        for a in network.regions
        for b in network.regions
        if a != b and (a, b) != ("west-1", "west-0")
    }
    cluster = replace(scenario.cluster, network=replace(one_way, links=rules))
    east, west = simulate(replace(scenario, cluster=cluster)).requests.itertuples()
    assert east.tpot_s - west.tpot_s == pytest.approx(2 * ACROSS_S, abs=1e-6)


# -- faults and the coordinator alone


@pytest.mark.parametrize("policy", ["maxflow", "swarm", "random"])
def test_when_a_region_loses_its_node_only_its_own_requests_fail(policy):
    scenario = two_regions(
        EAST,
        WEST,
        across=None,
        requests=[(0.0, 4, 30), (0.1, 4, 30), (3.0, 4, 3), (3.1, 4, 3)],
        policy=policy,
        duration_s=20.0,
    )
    scenario = replace(
        from_regions(scenario, "east", "west", "east", "west"),
        faults=Faults(detection_s=0.5, events=(Fault("west", 1.0, None),)),
    )
    statuses = simulate(scenario).requests["status"].tolist()
    assert statuses == ["completed", "failed: west was lost", "completed", "rejected: nodes"]


def test_what_is_recorded_is_replayed_with_the_coordinator_alone():
    scenario = two_regions(EAST, WEST)
    links = (("coordinator", "east"), ("east", EAST.name), (WEST.name, "east"))
    listed = replace(scenario, placement=Placement({"east": (0, 2)}, links))
    alone = with_coordinator_alone(listed)
    assert alone.cluster.front_ends == (replace(EAST, share=1.0),)
    assert alone.placement.links == links[:2]
    assert with_coordinator_alone(alone) is alone
