"""What the surrogate makes of workloads, links and layers: figures reckoned by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from builders import make_scenario, offline

from helixsim.planner.problem import planning_problem
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.demand import offered_requests_per_s, prompt_spread
from helixsim.planner.simulated.link_table import LinkTable
from helixsim.planner.simulated.step_times import StepTimes
from helixsim.planner.simulated.surrogate import Surrogate
from helixsim.profiles.kv_memory import KvMemory
from helixsim.requests import SessionTurn, TraceRequest
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.workload_values import Turns, UserClass, Workload
from helixsim.traces.distributions import Fixed
from helixsim.traces.lengths import IndependentLengths
from helixsim.traces.values import Lengths, Trace


def users(prompts: tuple[int, ...], **options) -> UserClass:
    return UserClass(lengths=Lengths(tuple((n, 5) for n in prompts)), **options)


def classes(*groups: UserClass) -> Workload:
    return Workload(mode="online", classes=groups)


def test_prompts_of_classes_count_by_their_shares():
    workload = classes(users((100,), share=0.75), users((200, 400), share=0.25))
    mean = 0.75 * 100 + 0.25 * 300
    square = 0.75 * 100**2 + 0.25 * (200**2 + 400**2) / 2
    assert prompt_spread(workload, 60.0) == pytest.approx(square / mean**2)


def test_prompts_of_a_distribution_are_drawn():
    lengths = IndependentLengths(Fixed(70), Fixed(30))
    assert prompt_spread(Workload(mode="offline", lengths=lengths), 60.0) == 1.0
    assert prompt_spread(Workload(mode="offline"), 60.0) == 1.0


def test_prompts_of_conversations_grow():
    """A system prompt of 20, turns of 10 and 5: prompts of 30, 45 and 60."""
    talks = Turns(Fixed(3), think_time=Fixed(1), system_prompt_tokens=20)  # type: ignore[arg-type]
    squares = (30**2 + 45**2 + 60**2) / 3
    found = prompt_spread(classes(users((10,), share=1.0, conversations=talks)), 60.0)
    assert found == pytest.approx(squares / 45**2)


def test_prompts_of_all_turns_of_a_trace_count():
    later = (SessionTurn(0.0, 300, 5),)
    trace = Trace((TraceRequest(0.0, 100, 5, later_turns=later), TraceRequest(9.0, 100, 5)))
    workload = Workload(mode="online", trace=trace)
    squares = (100**2 + 300**2 + 100**2) / 3
    assert prompt_spread(workload, 60.0) == pytest.approx(squares / (500 / 3) ** 2)


def scenario(workload: dict, **cluster) -> Scenario:
    return Scenario.from_dict(
        {
            "name": "demand",
            "llm": "llama1-30b",
            "cluster": {
                "coordinator": {"nic": "10 Gbit/s"},
                "nodes": [{"type": "A100", "count": 4}],
                "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
                **cluster,
            },
            "workload": workload,
            "run": {"duration": "60 s"},
        }
    )


def test_the_rate_of_classes_and_of_tokens():
    own = {
        name: {"requests_per_s": rate, "prompt_tokens": 100, "output_tokens": 10}
        for name, rate in (("a", 0.5), ("b", 1.5))
    }
    assert offered_requests_per_s(scenario({"classes": own}), 110.0) == pytest.approx(2.0)
    tokens = {"mode": "online", "lengths": "azure-conversation", "mean_tokens_per_s": 3000}
    assert offered_requests_per_s(scenario(tokens), 1000.0) == 3.0
    closed = scenario({"mode": "offline", "lengths": "azure-conversation"})
    assert offered_requests_per_s(closed, 1000.0) == inf


def test_an_estimate_ends_at_the_offered_rate():
    lengths = {"prompt_tokens": 100, "output_tokens": 10}
    found = scenario({"requests_per_s": 0.25, **lengths})
    problem = planning_problem(found)
    chain = {node: (15 * node, 15 * node + 15) for node in range(4)}
    assert Surrogate(found, problem).of_ranges(chain).decode_tokens_per_s == pytest.approx(2.5)


# -- links of several front ends


def front_ends() -> Scenario:
    """Two nodes in each of two regions, a front end in each."""
    document = scenario({"mode": "offline", "lengths": "azure-conversation"}).document
    return Scenario.from_dict(
        document
        | {
            "cluster": {
                "coordinator": [
                    {"nic": "10 Gbit/s", "region": "east"},
                    {"nic": "1 Gbit/s", "region": "west"},
                ],
                "nodes": [
                    {"type": "A100", "name": f"{region}-{{i}}", "count": 2, "region": region}
                    for region in ("east", "west")
                ],
                "network": {
                    "within": {"bandwidth": "5 Gbit/s", "latency": "1 ms"},
                    "across": {"bandwidth": "8 Gbit/s", "latency": "40 ms"},
                },
            }
        }
    )


def test_the_nearest_front_end_counts():
    problem = planning_problem(front_ends())
    table = LinkTable(problem)
    home = 4
    assert table.each_latency_s.shape == (6, 6)
    assert table.latency_s[home, :home].tolist() == [0.001] * 4
    assert table.latency_s[:home, home].tolist() == [0.001] * 4
    # 5 Gbit/s to the east; 1 Gbit/s, of the network interface, to the west.
    assert table.bandwidth[home, :home] == pytest.approx([5e9 / 8] * 2 + [1e9 / 8] * 2)
    assert table.latency_s[0, 2] == table.each_latency_s[home, 2] == 0.040


def test_nodes_of_two_regions_are_not_alike():
    assert alike_nodes(planning_problem(front_ends())).members == ((0, 1), (2, 3))


# -- layers of different sizes


def test_layers_of_different_sizes_leave_different_room():
    """Of 100 bytes, the second layer takes 20 and the third 68; a token takes 1 byte of each."""
    found = make_scenario({"a": (0, 4)}, workload=offline([(10, 4)]))
    llm = replace(found.llm, bytes_of_layer=(20.0, 20.0, 68.0, 20.0))
    kind = found.machine_types["kind"]
    profile = replace(kind.profiles["toy"], kv_memory=KvMemory(llm, 100.0))
    types = {"kind": replace(kind, profiles={"toy": profile})}
    times = StepTimes(replace(found, llm=llm, machine_types=types), planning_problem(found), 10, 4)
    assert times.of(0, 1, 2)[2] == 80
    assert times.of(0, 2, 3)[2] == 32


# -- decodes that go on at the nodes


def test_decodes_stay_at_a_node_that_holds_all_layers():
    """Of each second, prompts take 2 x their time: decodes have the rest, and pass no link."""
    fleet = load_scenario("fleet", ["workload.requests_per_s=2"])
    problem = planning_problem(fleet)
    surrogate = Surrogate(fleet, problem)
    node = problem.numbers["h0"]
    prompt_s, decodes, _ = surrogate.times.of(problem.kind_of[node], 0, problem.num_layers)
    free = 1 - 2 * prompt_s
    found = surrogate.of_ranges({node: (0, problem.num_layers)})
    in_flight = 2 * surrogate.output_tokens * found.decode_latency_s
    assert found.decode_latency_s == pytest.approx(decodes(int(in_flight)) / free, rel=0.02)


def test_decodes_go_from_the_last_node_to_the_first():
    """30 ms lie between the front end and both nodes, 0.1 ms between these."""
    found = []
    for region in ("east", "west"):
        options = ["workload.requests_per_s=2", f"cluster.coordinator.region={region}"]
        scenario = load_scenario("fleet", options)
        problem = planning_problem(scenario)
        first, last = problem.numbers["l0"], problem.numbers["l1"]
        found.append(Surrogate(scenario, problem).of_ranges({first: (0, 32), last: (32, 64)}))
    assert found[0].decode_latency_s == pytest.approx(found[1].decode_latency_s)
    away_s = found[0].prompt_latency_s - found[1].prompt_latency_s
    assert away_s == pytest.approx(2 * 0.0299, rel=0.1)
