from dataclasses import replace

import pytest

from helixsim.cluster import Nic, Node
from helixsim.errors import PlacementError
from helixsim.placement.placement import Placement, link_fits, node_capacity, placement_mistakes
from helixsim.profiles.library import load_machine_type

PROFILE = load_machine_type("L4").profiles["llama2-70b"]
NODE = Node("a", "L4", Nic(1.0, 1.0), 1.0)


def test_the_capacity_is_that_of_the_machine_type():
    assert node_capacity(NODE, PROFILE, 3) == PROFILE.capacity(3)
    with pytest.raises(PlacementError, match="no capacity for 9 layers"):
        node_capacity(NODE, PROFILE, 9)


def test_a_kv_capacity_of_the_nodes_own_takes_its_place():
    node = replace(NODE, kv_token_layers=123)
    assert node_capacity(node, PROFILE, 3) == replace(PROFILE.capacity(3), kv_token_layers=123)
    largest = PROFILE.capacity(max(PROFILE.capacities))
    assert node_capacity(node, PROFILE, 9) == replace(largest, kv_token_layers=123)
    assert node_capacity(node, PROFILE, 30) == replace(largest, kv_token_layers=123)


PLACEMENT = Placement({"a": (0, 4), "b": (2, 6), "c": (4, 8), "d": (4, 8), "e": (6, 7)})


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("coordinator", "a", True),
        ("coordinator", "b", False),
        ("a", "b", True),
        ("a", "c", True),
        ("a", "e", False),
        ("b", "c", True),
        ("b", "a", False),
        ("b", "e", True),
        ("c", "d", False),
        ("e", "c", True),
        ("c", "coordinator", True),
        ("e", "coordinator", False),
        ("a", "a", False),
        ("x", "a", False),
        ("a", "x", False),
        ("coordinator", "x", False),
        ("coordinator", "coordinator", False),
    ],
)
def test_a_link_fits_if_the_target_holds_the_next_layer(source, target, fits):
    assert link_fits(PLACEMENT, 8, source, target) is fits


def test_a_placement_without_mistakes(load):
    scenario = load()
    mistakes = placement_mistakes(
        scenario.placement, scenario.cluster, scenario.llm, scenario.profiles()
    )
    assert mistakes == []


def test_all_mistakes_are_found(load):
    scenario = load()
    placement = Placement({**scenario.placement.layers, "big": (0, 40), "x": (0, 1)})
    mistakes = placement_mistakes(placement, scenario.cluster, scenario.llm, scenario.profiles())
    assert [where for where, _ in mistakes] == ["layers.big", "layers.x"]
