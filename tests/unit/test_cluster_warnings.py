"""What a run says of machines that serve nothing, and of missing prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import make_scenario

from helixsim import simulate
from helixsim.placement.placement import Placement

ONE_EACH = {"a": (0, 2), "b": (0, 2), "c": (0, 2)}


def warnings_of(scenario):
    return [
        text
        for text in simulate(scenario).summary["warnings"]
        if text.startswith(("no request passed", "no costs", "no energy"))
    ]


def test_a_machine_without_layers_is_named_with_its_price():
    scenario = make_scenario(ONE_EACH, requests=[(0.0, 3, 1), (0.0, 3, 1)])
    without_c = replace(scenario, placement=Placement({"a": (0, 2), "b": (0, 2)}))
    assert warnings_of(without_c) == ["no request passed c (1 of 3 machines)"]
    priced = replace(without_c, dollars_per_hour={"kind": 1.6})
    assert warnings_of(priced) == ["no request passed c (1 of 3 machines, 1.60 $/h)"]


def test_a_placed_machine_is_named_if_no_request_passes_it():
    # One request takes one route.
    scenario = make_scenario(ONE_EACH, requests=[(0.0, 3, 1)])
    (warning,) = warnings_of(replace(scenario, dollars_per_hour={"kind": 1.6}))
    assert warning.endswith(" (2 of 3 machines, 3.20 $/h)")


def test_machines_that_no_link_reaches_are_named(load):
    rule = {"bandwidth": "10 Gbit/s", "latency": "1 ms"}
    scenario = load(
        {
            "cluster.nodes": [
                {"type": "A100", "name": "near", "region": "east", "kv_token_layers": 10**7},
                {"type": "A100", "name": "far", "region": "west", "kv_token_layers": 10**7},
            ],
            "cluster.coordinator": {"region": "east", "nic": "10 Gbit/s"},
            "cluster.network": {"within": rule},
            "placement": {
                "layers": {"near": [0, 80], "far": [0, 80]},
                "allow_overcommitted_layers": True,
            },
            "run.duration": "100 s",
        }
    )
    (warning,) = warnings_of(scenario)
    assert warning.startswith("no request passed far (1 of 2 machines, ")


def test_nothing_is_said_where_all_serve_or_nothing_was_completed():
    assert warnings_of(make_scenario({"a": (0, 2)}, requests=[(0.0, 3, 1)])) == []
    assert warnings_of(make_scenario(ONE_EACH, requests=[(90.0, 3, 1)], duration_s=8.0)) == []


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, []),
        ({"A100": 1.0, "T4": 1.0}, []),
        (
            {"A100": 1.0},
            [
                "no costs: no price of T4; give dollars_per_hour",
                "no energy: no power of T4; give watts",
            ],
        ),
    ],
)
def test_types_without_a_price_are_named_where_others_have_one(known, expected):
    scenario = make_scenario({"a": (0, 1), "b": (1, 2)}, requests=[(0.0, 3, 1)])
    first, second = scenario.cluster.nodes
    types = scenario.machine_types["kind"]
    nodes = (replace(first, machine_type="A100"), replace(second, machine_type="T4"))
    mixed = replace(
        scenario,
        cluster=replace(scenario.cluster, nodes=nodes),
        machine_types={name: replace(types, name=name) for name in ("A100", "T4")},
    )
    assert warnings_of(replace(mixed, dollars_per_hour=known, watts=known)) == expected
