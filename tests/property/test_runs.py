"""What holds for any run of any scenario."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
from builders import iterations
from hypothesis import HealthCheck, given, settings
from toy_scenarios import POLICIES, scenarios, troubled

from helixsim.control.kv_cache import held_token_layers
from helixsim.models.event_loop import ReusableEvent
from helixsim.models.simulation import Simulation, Watcher, simulate

SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rows(result, table):
    columns = result.tables[table].as_dict()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@SETTINGS
@given(scenarios())
def test_requests_and_tokens_are_conserved(scenario):
    result = simulate(scenario, record_iterations=True)
    counts = result.summary["requests"]
    assert counts["arrived"] == counts["completed"] + counts["rejected"] + counts["in_flight"]

    passes = defaultdict(list)
    for request, number, start, end in iterations(result):
        passes[request].append((number, start, end))
    by_status = defaultdict(int)
    for row in rows(result, "requests"):
        by_status[row["status"].split(":")[0]] += 1
        own = passes.pop(row["request"], [])
        assert [number for number, _, _ in own] == list(range(len(own)))
        assert all(start < end for _, start, end in own)
        assert all(before[2] == after[1] for before, after in pairwise(own))
        assert row["decode_tokens"] == max(len(own) - 1, 0)
        if row["status"].startswith("rejected"):
            assert own == []
        elif own:
            assert row["arrival_s"] == row["dispatch_s"] == own[0][1]
            assert row["first_token_s"] == own[0][2]
        if row["status"] == "completed":
            # The prefill, a decode for every further token, and the one that is published.
            assert len(own) == 1 + row["output_tokens"]
            assert row["end_s"] == own[-1][2]
    assert passes == {}
    assert dict(by_status) == {
        name: count
        for name, count in (
            ("completed", counts["completed"]),
            ("rejected", counts["rejected"]),
            ("in flight", counts["in_flight"]),
        )
        if count
    }


@SETTINGS
@given(scenarios(drain=True))
def test_a_drained_cluster_is_empty(scenario):
    simulation = Simulation(scenario)
    result = simulation.run()
    assert result.summary["requests"]["in_flight"] == 0
    assert simulation.is_idle
    assert all(node.num_waiting == node.num_running == 0 for node in simulation.nodes)
    now = simulation.environment.now
    assert all(link.backlog_s(now) == 0 for link in simulation.links)
    expected = {simulation.policy.expected_tokens(node.index) for node in simulation.topology.nodes}
    assert expected == ({0} if scenario.scheduler.policy == "maxflow" else {None})
    assert simulation.policy.bottleneck_share() in (0, None)


@SETTINGS
@given(scenarios() | troubled())
def test_time_never_runs_backwards(scenario):
    simulation = Simulation(scenario, record_iterations=True)
    result = simulation.run()
    ends = [end for *_, end in iterations(result)]
    assert ends == sorted(ends)
    if not scenario.run.drain:
        assert all(end <= simulation.end_s for end in ends)
    times = list(result.tables["timeline"].values[0])
    assert times == sorted(set(times))


@SETTINGS
@given(scenarios() | troubled())
def test_nothing_is_planned_for_the_past(scenario):
    """The coordinator's machine, which looks late, must never look too late."""
    late = []

    def noting(put):
        def put_and_note(event, at, *order):
            if at < event.env.now:
                late.append((at, event.env.now))
            put(event, at, *order)

        return put_and_note

    with (
        patch.object(ReusableEvent, "schedule", noting(ReusableEvent.schedule)),
        patch.object(ReusableEvent, "schedule_numbered", noting(ReusableEvent.schedule_numbered)),
    ):
        simulate(scenario)
    assert late == []


@SETTINGS
@given(scenarios() | troubled())
def test_the_same_seed_gives_the_same_run(scenario):
    first, second = (simulate(scenario, record_iterations=True) for _ in range(2))
    assert first.summary == second.summary
    for name, table in first.tables.items():
        # repr tells one NaN from nothing else, and the last bit of every number.
        assert repr(table.values) == repr(second.tables[name].values)


@SETTINGS
@given(scenarios())
def test_being_looked_at_changes_nothing(scenario):
    often = replace(scenario, run=replace(scenario.run, sample_interval_s=0.03))
    watcher = Watcher(0.07, lambda simulation: None)
    seldom = iterations(simulate(scenario, record_iterations=True))
    assert iterations(simulate(often, record_iterations=True, watchers=(watcher,))) == seldom


@SETTINGS
@given(scenarios())
def test_routes_cover_every_layer_once_over_links_of_the_placement(scenario):
    simulation = Simulation(scenario)
    result = simulation.run()
    topology = simulation.topology
    held = {node.name: (node.start_layer, node.end_layer) for node in topology.nodes}
    links = {(topology.name(a.source), topology.name(a.target)) for a in topology.links}
    for row in rows(result, "requests"):
        if row["status"].startswith("rejected"):
            assert not row["route"]
            continue
        stages = re.findall(r"(\S+)\[(\d+):(\d+)\]", row["route"])
        names = [name for name, _, _ in stages]
        ranges = [(int(start), int(end)) for _, start, end in stages]
        layers = [layer for start, end in ranges for layer in range(start, end)]
        assert layers == list(range(len(layers)))
        for name, (start, end) in zip(names, ranges, strict=True):
            assert held[name][0] <= start < end == held[name][1]
        stops = ["coordinator", *names]
        if row["status"] == "completed" or scenario.scheduler.policy == "maxflow":
            assert len(layers) == scenario.llm.num_layers
            stops.append("coordinator")
        assert links.issuperset(pairwise(stops))


@SETTINGS
@given(scenarios())
def test_flow_is_conserved_within_capacities(scenario):
    simulation = Simulation(scenario)
    topology, flow = simulation.topology, simulation.flow
    by_link = flow.link_tokens_per_s
    machines = range(topology.coordinator + 1)
    # The solver adds and takes away amounts as large as the widest network interface takes.
    widest = max(topology.nic(machine).outbound_bytes_per_s for machine in machines)
    slack = 1e-15 * widest / scenario.llm.token_bytes

    def total(links):
        return sum(by_link[link.index] for link in links)

    def same(amount):
        return pytest.approx(amount, rel=1e-9, abs=slack)

    def fits(amount, most):
        return amount <= most * (1 + 1e-9) + slack

    assert total(topology.outgoing[topology.coordinator]) == same(flow.tokens_per_s)
    assert total(topology.incoming[topology.coordinator]) == same(flow.tokens_per_s)
    for node in topology.nodes:
        inflow = total(topology.incoming[node.index])
        assert inflow == same(total(topology.outgoing[node.index]))
        assert fits(inflow, flow.compute_tokens_per_s[node.index])
    for link in topology.links:
        assert by_link[link.index] >= 0
        assert fits(by_link[link.index], link.bandwidth_bytes_per_s / link.bytes_per_token)
    for machine in machines:
        nic = topology.nic(machine)
        for limit, links in (
            (nic.inbound_bytes_per_s, topology.incoming[machine]),
            (nic.outbound_bytes_per_s, topology.outgoing[machine]),
        ):
            if links:
                heaviest = max(link.bytes_per_token for link in links)
                assert fits(total(links), limit / heaviest)


@SETTINGS
@given(scenarios(policies=("maxflow",), drain=False))
def test_kv_caches_hold_no_more_than_expected_of_answers_no_longer_than_expected(scenario):
    workload = replace(scenario.workload, mean_output_tokens=6)  # no answer is longer
    simulation = Simulation(replace(scenario, workload=workload))
    nodes = simulation.topology.nodes
    looks = []

    def look(running):
        used = held_token_layers(running.coordinator.active, len(nodes))
        expected = [running.policy.expected_tokens(node.index) for node in nodes]
        looks.append(
            all(
                u <= e <= 0.85 * node.capacity.kv_token_layers
                for u, e, node in zip(used, expected, nodes, strict=True)
            )
        )

    result = simulation.run((Watcher(0.05, look),))
    assert looks
    assert all(looks)
    assert result.summary["kv_overflow_samples"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_utilisation_is_a_share(policy):
    @SETTINGS
    @given(
        scenarios(policies=(policy,), sample_interval_s=0.1)
        | troubled(policies=(policy,), sample_interval_s=0.1)
    )
    def check(scenario):
        result = simulate(scenario)
        for table in ("nodes", "links"):
            for row in rows(result, table):
                # Policies work with whole bytes per second; a share may have a hundred here.
                assert -1e-9 <= row["utilisation"] <= 1 + 2e-2

    check()
