"""Explanations of scenarios whose bottleneck is known by hand."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from builders import HOST, capacity, fitting_pairs, make_machine_type, make_scenario, offline
from typer.testing import CliRunner

import helixsim
from helixsim.cli import app
from helixsim.cluster import Link, LinkList, LinkRule, Node, RuleNetwork, Spread
from helixsim.drawing.explanation import explanation_figure
from helixsim.drawing.save import drawing_bytes
from helixsim.errors import InputError
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Slo
from helixsim.studies.explain import Progress, explain
from helixsim.studies.explain_changes import number_formats
from helixsim.studies.explain_network import scaled_rules
from helixsim.studies.explain_text import explanation_text

PROMPT, OUTPUT = 10, 4
ONE = {"a": (0, 1)}
PAIR = {"a": (0, 1), "b": (1, 2)}
FLAT = LatencyProfile((0, 1, 10_000), (0.0, 0.02, 0.02))
"""20 ms for any batch."""
LINEAR = LatencyProfile((0, 10_000), (0.0, 100.0))
"""10 ms for each token."""
SLOW = LatencyProfile((0, 1, 10_000), (0.0, 0.2, 0.2))
"""The same with 200 ms."""
ROOM = capacity(kv_token_layers=280)
QUICK = LatencyProfile((0, 10_000), (0.0, 0.01))


def scenario_of(layers, *, kv=280, lengths=(PROMPT, OUTPUT), initial_requests=20, **options):
    settings = {
        "workload": offline([lengths], initial_requests=initial_requests),
        "room": capacity(kv_token_layers=kv),
        "prefill": QUICK,
        "decode": QUICK,
        "duration_s": 25.0,
        "warmup_s": 5.0,
        "sample_interval_s": 0.5,
    }
    return make_scenario(layers, **(settings | options))


def kinds(explanation):
    return [finding.kind for finding in explanation.findings]


def of_kind(explanation, kind):
    return next(each for each in explanation.what_ifs if each.kind == kind)


@pytest.fixture(scope="module")
def kv_bound():
    """80 requests of 14 tokens fill 80 % of 1400; batches of any size take as long."""
    return explain(scenario_of(ONE, kv=1400, decode=SLOW), simulated=5)


def test_a_full_kv_cache_is_the_first_finding(kv_bound):
    first = kv_bound.findings[0]
    assert (first.kind, first.nodes) == ("kv", ("a",))
    assert first.severity > 0.75
    assert "layer 0 (a) are full" in first.text
    assert "Offline, no further request is sent then" in first.text


def test_more_kv_cache_gives_as_many_more_requests(kv_bound):
    """88 requests in place of 80, in batches that take no longer."""
    memory = of_kind(kv_bound, "memory")
    assert memory.estimated_gain == pytest.approx(0.1, abs=0.03)
    assert memory.simulated_gain == pytest.approx(0.1, abs=0.03)


def test_full_batches_that_grow_for_free_are_not_called_bound_by_compute(kv_bound):
    (stage,) = kv_bound.measures.stages
    assert stage.utilisation > 0.9
    assert stage.growing_share == pytest.approx(0.0, abs=1e-3)
    assert stage.load == pytest.approx(0.0, abs=1e-3)


def test_a_node_that_computes_all_the_time_is_the_first_finding():
    explanation = explain(scenario_of(ONE, kv=280, decode=LINEAR, prefill=LINEAR))
    first = explanation.findings[0]
    assert (first.kind, first.nodes) == ("compute", ("a",))
    assert first.figures["utilisation"] == pytest.approx(1.0, abs=0.01)
    assert first.figures["growing_share"] == pytest.approx(1.0)
    assert "kv" in kinds(explanation)  # offline, requests pile up in the cache
    machine = of_kind(explanation, "machine")
    assert machine.simulated_gain == pytest.approx(1.0, abs=0.1)  # a second one serves as much
    assert machine.placement.layers == {"a": (0, 1), "more-kind": (0, 1)}
    assert of_kind(explanation, "memory").estimated_gain == pytest.approx(0.0, abs=0.02)


def test_a_link_that_sends_all_the_time_is_the_first_finding():
    """A request sends 14 tokens of 10 bytes from a to b, at 1000 bytes per second."""
    links = dict.fromkeys(fitting_pairs(PAIR, 2), (1e9, 0.001)) | {("a", "b"): (1000.0, 0.001)}
    explanation = explain(scenario_of(PAIR, links=links, initial_requests=5))
    first = explanation.findings[0]
    assert (first.kind, first.nodes) == ("link", ("a", "b"))
    assert first.figures["utilisation"] == pytest.approx(1.0, abs=0.02)
    best = of_kind(explanation, "bandwidth")
    assert best.text == "twice the bandwidth of the 1 link of up to 1000 B/s"
    assert best.simulated_gain == pytest.approx(1.0, abs=0.1)


@pytest.fixture(scope="module")
def with_idle():
    """A busy node, and one that holds nothing though it has the same links."""
    scenario = scenario_of(ONE, decode=LINEAR, prefill=LINEAR)
    nodes, links = scenario.cluster.nodes, scenario.cluster.network.links
    further = {pair: Link(*pair, 1e9, 0.001) for pair in ((HOST, "b"), ("b", HOST))}
    cluster = replace(
        scenario.cluster,
        nodes=(*nodes, replace(nodes[0], name="b")),
        network=LinkList({**links, **further}),
    )
    return explain(replace(scenario, cluster=cluster))


def test_an_idle_machine_is_found_and_put_to_work(with_idle):
    idle = next(finding for finding in with_idle.findings if finding.kind == "idle")
    assert (idle.nodes, idle.severity) == (("b",), 0.5)
    assert idle.text == "Idle: without layers: b."
    change = of_kind(with_idle, "idle")
    assert change.text == "b (kind), which is idle, holds layer 0"
    assert change.dollars_per_hour is None
    assert change.simulated_gain == pytest.approx(1.0, abs=0.1)


def test_busy_and_idle_machines_with_the_same_layers_are_told_apart():
    """Nodes of two types hold the layer; the slow one has hardly any flow and gets no requests."""
    slow = LatencyProfile((0, 10_000), (0.0, 1e5))
    types = {
        "a": make_machine_type("fast", 1, prefill=LINEAR, decode=LINEAR, room=ROOM),
        "b": make_machine_type("slow", 1, prefill=slow, decode=slow, room=ROOM),
    }
    layers = {"a": (0, 1), "b": (0, 1)}
    explanation = explain(scenario_of(layers, types=types), simulated=0)
    assert [stage.nodes for stage in explanation.measures.stages] == [("a",), ("b",)]
    assert (explanation.findings[0].kind, explanation.findings[0].nodes) == ("compute", ("a",))


def test_the_served_bound_stands_beside_what_was_served(with_idle):
    bound = with_idle.limits.served_bound.decode_tokens_per_s
    assert bound >= with_idle.figures["decode_tokens_per_s"]
    assert "bound by the compute of 1 node at layer 0 (a)" in with_idle.limits.cut


def test_what_decodes_wait_for():
    """A decode of 20 ms, and prompts of a second in the same queue."""
    long = LatencyProfile((0, 10_000), (0.0, 1000.0))
    explanation = explain(scenario_of(ONE, kv=200, prefill=long, decode=FLAT), simulated=0)
    blocking = next(each for each in explanation.findings if each.kind == "blocking")
    own_s = 0.02 + 2 * (0.001 + 2 / 1e9)
    assert blocking.figures["own_decode_s"] == pytest.approx(own_s, rel=0.01)
    decode_s = blocking.figures["decode_s"]
    assert blocking.severity == pytest.approx(1 - own_s / decode_s, rel=0.01)
    assert decode_s > 0.2


def test_latency_of_far_links_as_a_share_of_a_decode():
    """Both far links of a route take 0.2 s, everything else 2 ms."""
    links = dict.fromkeys(fitting_pairs(PAIR, 2), (1e9, 0.001)) | {
        ("a", "b"): (1e9, 0.2),
        ("b", HOST): (1e9, 0.2),
    }
    explanation = explain(scenario_of(PAIR, links=links, initial_requests=2), simulated=3)
    latency = next(each for each in explanation.findings if each.kind == "latency")
    assert latency.figures["decode_crossing_s"] == pytest.approx(0.4)
    assert latency.figures["crossings"] == pytest.approx(2.0)
    change = of_kind(explanation, "latency")
    assert change.text == "half the latency of the 2 links, up to 200 ms"
    assert change.simulated_gain > 0.5


def test_online_the_latency_closest_to_its_limit_is_the_goal():
    requests = [(float(at), PROMPT, OUTPUT) for at in range(50)]
    slos = (Slo(name="chat", ttft_s=10.0, tpot_s=0.05, share=0.9),)
    scenario = replace(scenario_of(ONE, workload=None, requests=requests, decode=FLAT), slos=slos)
    explanation = explain(scenario)
    assert explanation.goal.figure == "tpot_s.p95"
    assert explanation.figures["slo.chat.attainment"] == 1.0
    assert "kv" not in kinds(explanation)
    assert explain(scenario, goal="ttft_s.p95", simulated=0).goal.figure == "ttft_s.p95"


def test_under_overload_the_throughput_is_the_goal():
    """A request takes 0.14 s of the node, and 20 arrive a second."""
    requests = [(at / 20, PROMPT, OUTPUT) for at in range(400)]
    scenario = scenario_of(ONE, workload=None, requests=requests, decode=LINEAR, prefill=LINEAR)
    explanation = explain(scenario, simulated=0)
    assert explanation.goal.figure == "decode_tokens_per_s"
    assert explanation.goal.reason == "more requests arrive than are served"


def test_requests_for_machines_with_a_small_share_of_the_flow():
    """The slow machine's share is below 5 %, so no request is sent there."""
    slow = LatencyProfile((0, 10_000), (0.0, 5e3))
    types = {
        "a": make_machine_type("fast", 1, prefill=LINEAR, decode=LINEAR, room=ROOM),
        "b": make_machine_type("slow", 1, prefill=slow, decode=slow, room=ROOM),
    }
    explanation = explain(scenario_of({"a": (0, 1), "b": (0, 1)}, types=types), simulated=0)
    assert "scheduler.min_flow_share=0" in of_kind(explanation, "routing").text


def test_rejected_requests_are_counted():
    """Requests of 14 tokens into a cache of which 85 % are 11."""
    requests = [(float(at), PROMPT, OUTPUT) for at in range(20)]
    scenario = scenario_of(ONE, workload=None, requests=[(0.0, 2, 2), *requests[1:]], kv=13)
    explanation = explain(scenario, simulated=0)
    rejected = next(each for each in explanation.findings if each.kind == "rejected")
    assert rejected.figures["rejected"] >= 19


def test_layers_move_away_from_the_stage_that_binds():
    """Four layers on a, two on b: with three on each, 4 / 3 of the requests pass."""
    layers = {"a": (0, 4), "b": (4, 6)}
    explanation = explain(scenario_of(layers, kv=1400, decode=LINEAR, prefill=LINEAR))
    change = of_kind(explanation, "layers")
    assert change.placement.layers == {"a": (0, 3), "b": (3, 6)}
    assert change.simulated_gain == pytest.approx(4 / 3 - 1, abs=0.08)


def test_fp8_is_tried_where_times_follow_from_the_architecture():
    changes = list(number_formats(load_scenario("fleet", ["llm.weights=bf16"])))
    assert [each.text for each in changes] == ["weights in fp8", "keys and values in fp8"]
    assert (
        changes[0].scenario.llm.layer_bytes
        < 0.6 * load_scenario("fleet", ["llm.weights=bf16"]).llm.layer_bytes
    )
    assert list(number_formats(load_scenario("quickstart"))) == []


def test_rules_of_pairs_of_regions_are_scaled():
    rule = LinkRule(Spread(8.0, 2.0), Spread(0.5))
    network = RuleNetwork({"a": "x", "b": "y", "c": "y"}, within=rule, across=rule)
    scaled = scaled_rules(network, [frozenset("xy")], bandwidth=2.0, latency=0.5)
    assert scaled.region_rule("x", "y") == LinkRule(Spread(16.0, 4.0), Spread(0.25))
    assert scaled.link("b", "c") == network.link("b", "c")


def test_an_explanation_is_frozen_text_json_and_html(kv_bound):
    with pytest.raises(FrozenInstanceError):
        kv_bound.scenario = "other"
    assert repr(kv_bound).startswith("<Explanation toy: KV cache: the caches of layer 0 (a)")
    assert "<img" in kv_bound._repr_html_()
    document = json.loads(json.dumps(kv_bound.to_json(), allow_nan=False))
    assert document["findings"][0]["kind"] == "kv"
    assert document["nodes"][0]["name"] == "a"
    text = explanation_text(kv_bound)
    assert "What binds, the worst first:" in text
    assert "more KV cache on every machine" in text


def test_the_picture_is_the_same_every_time(kv_bound):
    one, other = (drawing_bytes(explanation_figure(kv_bound), ".html") for _ in range(2))
    assert one == other
    assert b"KV cache in use" in one
    assert b"requests in a batch" in one  # a tooltip


def test_prices_per_additional_token():
    scenario = scenario_of(ONE, kv=280, decode=LINEAR, prefill=LINEAR)
    explanation = explain(replace(scenario, dollars_per_hour={"kind": 3.6}))
    machine = of_kind(explanation, "machine")
    assert machine.dollars_per_hour == 3.6
    key = "output_tokens_per_s"
    more = machine.figures[key] - explanation.figures[key]
    assert machine.dollars_per_million_tokens == pytest.approx(1e6 * 0.001 / more)


def test_an_interrupt_keeps_what_is_known():
    steps = []

    def stop(step, *_):
        steps.append(step)
        if step.startswith("simulates") and len([s for s in steps if s[:9] == "simulates"]) > 2:
            raise KeyboardInterrupt

    explanation = explain(
        scenario_of(ONE, kv=280, decode=LINEAR, prefill=LINEAR), progress=Progress(on_step=stop)
    )
    assert explanation.interrupted
    assert len(explanation.simulated) == 1
    assert explanation.to_json()["partial"] is True


def test_long_runs_are_shortened():
    scenario = scenario_of(
        ONE, decode=SLOW, duration_s=2000.0, warmup_s=1000.0, sample_interval_s=50.0
    )
    explanation = explain(scenario, simulated=0)
    assert explanation.notes[0] == "runs are shortened from 2000 s to 600 s, 300 s of it warm-up"


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"goal: no goal 'ttft_s.p9'; did you mean"):
        explain(scenario_of(ONE), goal="ttft_s.p9")
    with pytest.raises(InputError, match="simulated: -1 is below 0"):
        explain(scenario_of(ONE), simulated=-1)


# -- the command -----------------------------------------------------------------------------

SHORT = ["--set", "run.duration=30 s", "--set", "run.warmup=10 s"]


def run(*arguments):
    return CliRunner().invoke(app, ["explain", "quickstart", *SHORT, *map(str, arguments)])


def test_the_command_writes_a_picture_and_prints_text(tmp_path):
    file = tmp_path / "explain.png"
    result = run("-o", file, "--simulate", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("quickstart: ")
    assert file.read_bytes().startswith(b"\x89PNG")
    again = run("-o", file)
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_the_command_prints_and_writes_json(tmp_path):
    file = tmp_path / "explain.json"
    result = run("-o", file, "--simulate", 0, "--json")
    document = json.loads(result.stdout)
    assert document == json.loads(file.read_text())
    assert document["goal"] == "decode_tokens_per_s"
    assert all(each["simulated_gain"] is None for each in document["what_ifs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.pdf"], "x.pdf: the suffix selects the format"),
        (["--goal", "speed"], "goal: no goal 'speed'"),
    ],
)
def test_the_command_refuses_mistakes_before_it_runs(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_same_in_python():
    scenario = helixsim.load_scenario("quickstart", ["run.duration=30 s", "run.warmup=10 s"])
    explanation = helixsim.explain(scenario, simulated=0)
    assert isinstance(explanation, helixsim.Explanation)
    assert isinstance(scenario.cluster.nodes[0], Node)
    assert {each.kind for each in explanation.what_ifs} >= {"machine", "bandwidth", "memory"}
