"""The machines that `helixsim size` chooses from, and scenarios of sets of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from helixsim.errors import InputError
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.sizing.facts import machine_facts
from helixsim.studies.sizing.layouts import layouts
from helixsim.studies.sizing.offers import Fleet

CLUSTER = {
    "coordinator": {"nic": "80 Gbit/s"},
    "nodes": [
        {"name": "big", "type": "A100"},
        {"type": "A100", "count": 5},
        {"type": "A100", "count": 2, "name": "far-{i}", "region": "east"},
        {"type": "L4", "count": 2, "nic": "5 Gbit/s"},
    ],
    "network": {
        "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
        "across": {"bandwidth": "100 Mbit/s", "latency": "50 ms"},
        "regions": [{"between": ["default", "east"], "bandwidth": "1 Gbit/s", "latency": "9 ms"}],
    },
}
SCENARIO = {
    "name": "regions",
    "llm": "llama1-30b",
    "cluster": CLUSTER,
    "workload": {"requests_per_s": 1, "lengths": "alpaca"},
    "dollars_per_hour": {"A100": 3.6, "L4": 0.8},
}


def scenario(**changes):
    return Scenario.from_dict({**SCENARIO, **changes})


def labels(fleet):
    return [(offer.label, offer.owned, offer.may_add) for offer in fleet.offers]


def nodes(found):
    return [(node.name, node.region) for node in found.cluster]


def test_equal_machines_are_one_offer():
    fleet = Fleet(scenario())
    assert labels(fleet) == [
        ("A100@default", 0, True),
        ("A100@east", 0, True),
        ("L4", 0, True),
    ]
    assert nodes(fleet.scenario((2, 1, 0))) == [
        ("a100-default-0", "default"),
        ("a100-default-1", "default"),
        ("a100-east-0", "east"),
    ]


def test_rules_and_prices_are_of_the_machines_that_are_there():
    fleet = Fleet(scenario())
    here = fleet.document((3, 0, 0))
    assert here["cluster"]["network"]["regions"] == []
    assert here["dollars_per_hour"] == {"A100": 3.6}
    assert fleet.document((3, 1, 1))["cluster"]["network"]["regions"]
    assert fleet.scenario((3, 1, 1)).dollars_per_hour == {"A100": 3.6, "L4": 0.8}


def test_own_machines_stay_with_keep():
    fleet = Fleet(scenario(), ["L4"], keep=True)
    assert labels(fleet) == [("A100@default", 6, False), ("A100@east", 2, False), ("L4", 2, True)]
    found = fleet.scenario((6, 2, 3))
    assert [name for name, _ in nodes(found)][-3:] == ["l4-0", "l4-1", "l4-added-0"]
    assert fleet.kinds_of_nodes(found) == [0] * 6 + [1] * 2 + [2] * 3
    assert len(fleet.alone(2, 4).cluster) == 4


def test_added_machines_are_as_those_of_the_scenario_or_beside_the_coordinator():
    fleet = Fleet(scenario(), ["L4", "T4"], prices={"T4": 0.4})
    assert fleet.offers[0].entry == {"type": "L4", "nic": "5 Gbit/s"}
    assert fleet.offers[1].entry == {"type": "T4", "region": "default"}
    east = Fleet(scenario(), ["L4"], "east")
    assert east.offers[0].entry == {"type": "L4", "nic": "5 Gbit/s", "region": "east"}


def test_gpus_by_their_names():
    fleet = Fleet(load_scenario("fleet"), ["L40Sx2", "h100 sxm", "A100-SXM-80GBx2"])
    assert [offer.machine_type for offer in fleet.offers] == ["L40Sx2", "H100-SXM", "A100-80-SXMx2"]
    assert [offer.entry["region"] for offer in fleet.offers] == ["west", "east", "east"]
    facts = machine_facts(fleet)
    assert [fact.group for fact in facts] == [1, 1, 1]
    assert all(fact.dollars_per_hour > 0 and fact.bound_requests_per_s > 0 for fact in facts)
    with pytest.raises(InputError, match=r"^--add: a machine that may be added: .*H100"):
        Fleet(load_scenario("fleet"), ["H100-SMX"])


@pytest.mark.parametrize("kind", ["file", "generate"])
def test_clusters_in_files_and_generated_ones(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        content = yaml.safe_dump({"schema": 1, "kind": "cluster", **CLUSTER})
        Path("cluster.yaml").write_text(content)
        section = {"file": "cluster.yaml"}
    else:
        name = Path(__file__).parents[2] / "scenarios/generators/single24.yaml"
        section = {"generate": str(name)}
    fleet = Fleet(scenario(cluster=section), prices={"A100": 3.0, "L4": 1.0})
    assert {offer.machine_type for offer in fleet.offers} >= {"A100", "L4"}
    count = len(fleet.scenario(tuple(1 for _ in fleet.offers)).cluster)
    assert count == len(fleet.offers)


def test_all_sets_have_the_same_engine_and_physics():
    fleet = Fleet(load_scenario("fleet"))
    one, all_kinds = fleet.document((1, 0, 0)), fleet.document((1, 1, 1))
    assert one["engine"] == all_kinds["engine"] == "vllm"
    assert one["physics"] == all_kinds["physics"] == "calibrated"


def test_layouts_by_the_rule_and_with_the_shortest_pipelines():
    # A pair of RTX 4090 holds the LLM; the rule gives four of them one pipeline.
    fleet = Fleet(load_scenario("fleet"))
    by_rule, short = layouts(fleet.alone(2, 4))
    assert sorted(by_rule.placement.layers.values()) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert sorted(short.placement.layers.values()) == [(0, 32), (0, 32), (32, 64), (32, 64)]
    assert len(layouts(fleet.alone(0, 2))) == 1
