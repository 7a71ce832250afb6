"""Which outgoing links of a machine requests follow."""

from __future__ import annotations

import pytest
from builders import HOST, make_scenario, make_topology, offline

from helixsim.placement.flow import least_share, used_links


@pytest.fixture
def topology():
    """The coordinator has links to three nodes that hold all layers."""
    return star("abc")


def star(names):
    """The coordinator and nodes that hold all layers."""
    layers = dict.fromkeys(names, (0, 1))
    links = {pair: (1e6, 0.0) for name in layers for pair in ((HOST, name), (name, HOST))}
    return make_topology(make_scenario(layers, links=links, workload=offline([(10, 4)])))


def used(topology, flows, min_share, *, half_of_equal_is_enough=False, replicas=()):
    """Numbers of the used links out of the coordinator, in the order of `flows`."""
    links = topology.outgoing[topology.coordinator]
    by_link = [0.0] * len(topology.links)
    for link, flow in zip(links, flows, strict=True):
        by_link[link.index] = flow
    found = used_links(
        links,
        by_link,
        min_share,
        half_of_equal_is_enough=half_of_equal_is_enough,
        replicas=replicas,
    )
    return [links.index(link) for link in found]


@pytest.mark.parametrize(
    ("flows", "min_share", "expected"),
    [
        ((5.0, 4.0, 1.0), 0.05, [0, 1, 2]),
        ((5.0, 4.0, 1.0), 0.1, [0, 1, 2]),  # a share equal to the least one is enough
        ((5.0, 4.0, 1.0), 0.2, [0, 1]),
        ((5.0, 0.0, 5.0), 0.0, [0, 2]),  # a link without flow is never used
        ((0.0, 0.0, 0.0), 0.0, []),
    ],
)
def test_links_need_flow_and_a_share(topology, flows, min_share, expected):
    assert used(topology, flows, min_share) == expected
    assert used(topology, flows, min_share, half_of_equal_is_enough=True) == expected


def test_where_all_shares_are_small(topology):
    flows = (4.0, 0.0, 4.0)
    assert used(topology, flows, 0.6) == []
    assert used(topology, flows, 0.6, half_of_equal_is_enough=True) == [0, 2]


@pytest.mark.parametrize("successors", [8, 21, 40])
def test_of_many_successors_half_of_an_equal_share_is_enough(successors):
    """The slowest has 0.6 of an equal share; the published rule passes over all of 21 and more."""
    assert least_share(0.05, successors) == min(0.05, 0.5 / successors)
    topology = star([f"n{n}" for n in range(successors)])
    flows = (0.6, *([1.0] * (successors - 2)), 1.4)
    everyone = list(range(successors))
    assert used(topology, flows, 0.05, half_of_equal_is_enough=True) == everyone
    assert used(topology, flows, 0.05) == {8: everyone, 21: [20], 40: []}[successors]
    tiny = (0.4, *([1.0] * (successors - 2)), 1.6)
    assert (0 in used(topology, tiny, 0.05, half_of_equal_is_enough=True)) == (successors == 8)


def test_a_replica_is_used_however_small_its_share(topology):
    assert topology.replicas == {0, 1, 2}
    assert used(topology, (96.0, 4.0, 0.0), 0.05) == [0]
    assert used(topology, (96.0, 4.0, 0.0), 0.05, replicas={1, 2}) == [0, 1]  # 2 has no flow
