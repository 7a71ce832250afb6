"""A placement laid over its cluster."""

from __future__ import annotations

import pytest
from builders import HOST, capacity, fitting_pairs, make_cluster, make_llm, make_machine_type

from helixsim.cluster import Cluster, FrontEnd, Link, LinkList, Nic, Node
from helixsim.errors import NoRouteError, PlacementError
from helixsim.placement.placement import Placement
from helixsim.placement.topology import build_topology

LLM = make_llm(4)
TYPES = {"kind": make_machine_type("kind", 4)}


def topology_of(layers, *, given=None, missing=(), nodes=None):
    """Nodes of one kind with every link that fits, less some; `given` is the placement's list."""
    pairs = [pair for pair in fitting_pairs(layers, 4) if pair not in missing]
    cluster = make_cluster(
        dict.fromkeys(nodes or layers, "kind"),
        {pair: (1000.0 + number, 0.5) for number, pair in enumerate(pairs)},
        nics={HOST: 7.0},
    )
    placement = Placement(layers, None if given is None else tuple(given))
    return build_topology(LLM, cluster, placement, TYPES)


def pairs_of(topology):
    return [(topology.name(link.source), topology.name(link.target)) for link in topology.links]


def test_nodes_are_numbered_in_the_order_of_the_cluster():
    topology = topology_of({"b": (2, 4), "a": (0, 2)}, nodes=["a", "idle", "b"])
    assert [
        (node.index, node.name, node.start_layer, node.end_layer) for node in topology.nodes
    ] == [
        (0, "a", 0, 2),
        (1, "b", 2, 4),
    ]
    assert topology.nodes[1].num_layers == 2
    assert (topology.coordinator, topology.name(2)) == (2, HOST)
    assert topology.nic(2) == topology.coordinator_nic == Nic(7.0, 7.0)
    assert topology.nic(0) == Nic(1e12, 1e12)


def test_without_a_list_every_pair_that_fits_is_linked():
    topology = topology_of({"a": (0, 2), "b": (2, 4), "c": (1, 3), "d": (0, 4)})
    assert pairs_of(topology) == [
        (HOST, "a"),
        (HOST, "d"),
        ("a", "b"),  # goes on with layer 2
        ("a", "c"),  # in its middle
        ("a", "d"),
        ("b", HOST),
        ("c", "b"),
        ("c", "d"),
        ("d", HOST),
    ]
    entries = {
        pair: link.entry_layer
        for pair, link in zip(pairs_of(topology), topology.links, strict=True)
    }
    assert entries[HOST, "a"] == 0
    assert entries["a", "c"] == entries["a", "b"] == 2
    assert entries["c", "d"] == 3


def test_pairs_without_a_link_in_the_cluster_are_left_out():
    topology = topology_of({"a": (0, 2), "b": (2, 4), "c": (2, 4)}, missing=[("a", "c")])
    assert ("a", "c") not in pairs_of(topology)
    assert [len(links) for links in topology.outgoing] == [1, 1, 1, 1]


def test_a_list_is_kept_in_its_order():
    given = [("b", HOST), ("a", "b"), (HOST, "a")]
    topology = topology_of({"a": (0, 2), "b": (2, 4), "c": (2, 4)}, given=given)
    assert pairs_of(topology) == given
    assert [link.index for link in topology.links] == [0, 1, 2]
    assert [[link.index for link in links] for links in topology.outgoing] == [[1], [0], [], [2]]
    assert [[link.index for link in links] for links in topology.incoming] == [[2], [1], [], [0]]


def test_tokens_weigh_more_between_nodes():
    topology = topology_of({"a": (0, 2), "b": (2, 4)})
    weights = dict(
        zip(pairs_of(topology), (a.bytes_per_token for a in topology.links), strict=True)
    )
    assert weights == {(HOST, "a"): 2.0, ("a", "b"): 10.0, ("b", HOST): 2.0}


def test_missing_layers_are_named():
    with pytest.raises(NoRouteError, match=r"2 of 4 layers of toy are on no node: 1, 3"):
        topology_of({"a": (0, 1), "b": (2, 3)})


def test_many_missing_layers_are_cut_short():
    cluster = make_cluster({"a": "kind"}, {})
    with pytest.raises(NoRouteError, match=r"19 of 20 .*: 1, 2, 3, 4, 5, 6, 7, 8, \.\.\.$"):
        build_topology(make_llm(20), cluster, Placement({"a": (0, 1)}), TYPES)


def test_a_way_that_ends_says_how_far_it_goes():
    with pytest.raises(NoRouteError, match=r"reach only layer 2 from"):
        topology_of({"a": (0, 2), "b": (2, 4)}, missing=[("a", "b")])
    with pytest.raises(NoRouteError, match=r"reach only layer 0 from"):
        topology_of({"a": (0, 4)}, missing=[(HOST, "a")])


def test_a_listed_link_that_the_cluster_lacks_is_an_error():
    with pytest.raises(PlacementError, match="no link from a to b"):
        topology_of({"a": (0, 2), "b": (2, 4)}, missing=[("a", "b")], given=[("a", "b")])


def test_a_node_may_have_a_cache_of_its_own():
    # Its type knows of two layers at most: their batch limits hold for four.
    room = capacity(kv_token_layers=100, max_prompts=5)
    types = {"kind": make_machine_type("kind", 2, room=room)}
    node = Node("a", "kind", Nic(1.0, 1.0), 1.0, kv_token_layers=77)
    links = {pair: Link(*pair, 1.0, 1.0) for pair in ((HOST, "a"), ("a", HOST))}
    cluster = Cluster((node,), (FrontEnd(Nic(1.0, 1.0)),), LinkList(links))
    topology = build_topology(LLM, cluster, Placement({"a": (0, 4)}), types)
    assert topology.nodes[0].capacity == capacity(kv_token_layers=77, max_prompts=5)


def test_a_node_cannot_hold_more_layers_than_its_type():
    types = {"kind": make_machine_type("kind", 2)}
    cluster = make_cluster({"a": "kind"}, {})
    with pytest.raises(PlacementError, match="no capacity for 4 layers"):
        build_topology(LLM, cluster, Placement({"a": (0, 4)}), types)
