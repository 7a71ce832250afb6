"""Changes of a network that an explanation tries: bandwidth and latency of what binds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from helixsim.cluster import Cluster, Link, LinkList, LinkRule, Network, Nic, RuleNetwork, Spread
from helixsim.placement.cut_text import count_text
from helixsim.studies.explain_changes import Change
from helixsim.studies.explain_measures import Measures
from helixsim.studies.explain_routes import far_latency_s
from helixsim.units import format_bytes_per_s, format_seconds

if TYPE_CHECKING:
    from helixsim.placement.topology import Topology
    from helixsim.scenario.resolved import Scenario

_FASTER, _CLOSER = 2.0, 0.5
"""Factors of bandwidth and latency."""
_ALIKE = 2.0
"""Without regions, links of up to this multiple of the busiest one's bandwidth are made faster."""
_PAIRS = 2
"""Pairs of regions of which faster links are tried: of the links that send most of the time."""

Regions = frozenset[str]
"""Two regions, or one for the links within it."""


def network_changes(scenario: Scenario, topology: Topology, used: Measures) -> Iterator[Change]:
    """Twice the bandwidth of the links and of the interface that bind; half the latency."""
    if not used.links:
        return
    cluster = scenario.cluster
    regions = {each.region for each in cluster.front_ends} | {each.region for each in cluster}
    if isinstance(cluster.network, RuleNetwork) and len(regions) > 1:
        yield from _by_regions(scenario, cluster.network, used)
    elif isinstance(cluster.network, RuleNetwork | LinkList):
        yield from _by_links(scenario, cluster.network, topology, used)
    machine = used.interfaces[0].machine
    yield Change(
        kind="interface",
        text=f"twice the bandwidth of the network interface of {machine}",
        scenario=replace(scenario, cluster=_wider(cluster, machine)),
    )


def _wider(cluster: Cluster, machine: str) -> Cluster:
    """The cluster with a wider network interface at one machine."""

    def wider(nic: Nic) -> Nic:
        return Nic(_FASTER * nic.inbound_bytes_per_s, _FASTER * nic.outbound_bytes_per_s)

    nodes = tuple(
        replace(node, nic=wider(node.nic)) if node.name == machine else node for node in cluster
    )
    front_ends = tuple(
        replace(each, nic=wider(each.nic)) if each.name == machine else each
        for each in cluster.front_ends
    )
    return replace(cluster, nodes=nodes, front_ends=front_ends)


def _with_network(scenario: Scenario, network: Network) -> Scenario:
    return replace(scenario, cluster=replace(scenario.cluster, network=network))


# -- single links ----------------------------------------------------------------------------


def _by_links(
    scenario: Scenario, network: RuleNetwork | LinkList, topology: Topology, used: Measures
) -> Iterator[Change]:
    """Links about as slow as the busiest one, or slower; links as far as the farthest."""
    links = {
        (topology.name(link.source), topology.name(link.target)): link for link in topology.links
    }
    at = links[used.links[0].source, used.links[0].target].bandwidth_bytes_per_s
    slow = {ends for ends, link in links.items() if link.bandwidth_bytes_per_s <= _ALIKE * at}
    most = max(links[ends].bandwidth_bytes_per_s for ends in slow)
    yield Change(
        kind="bandwidth",
        text=f"twice the bandwidth of {_title(slow, links)} of up to {format_bytes_per_s(most)}",
        scenario=_with_network(scenario, scaled_links(network, slow, bandwidth=_FASTER)),
    )
    latencies = [link.latency_s for link in links.values()]
    least_s = far_latency_s(latencies)
    far = {ends for ends, link in links.items() if link.latency_s > least_s} or set(links)
    yield Change(
        kind="latency",
        text=f"half the latency of {_title(far, links)}, up to {format_seconds(max(latencies))}",
        scenario=_with_network(scenario, scaled_links(network, far, latency=_CLOSER)),
    )


def _title(some: Collection[tuple[str, str]], links: Collection[tuple[str, str]]) -> str:
    return f"{'all' if len(some) == len(links) else 'the'} {count_text(len(some), 'link')}"


def scaled_links(
    network: RuleNetwork | LinkList,
    some: Collection[tuple[str, str]],
    *,
    bandwidth: float = 1.0,
    latency: float = 1.0,
) -> RuleNetwork | LinkList:
    """A network in which some links have other bandwidths and latencies, by these factors."""
    found = [link for ends in sorted(some) if (link := network.link(*ends)) is not None]
    scaled = {
        (link.source, link.target): (
            bandwidth * link.bandwidth_bytes_per_s,
            latency * link.latency_s,
        )
        for link in found
    }
    if isinstance(network, LinkList):
        own = {ends: Link(*ends, *values) for ends, values in scaled.items()}
        return LinkList({**network.links, **own})
    rules = {ends: LinkRule(*map(Spread, values)) for ends, values in scaled.items()}
    return replace(network, links={**network.links, **rules})


# -- rules -----------------------------------------------------------------------------------


def _by_regions(scenario: Scenario, network: RuleNetwork, used: Measures) -> Iterator[Change]:
    """Links between the two regions, or within the region, whose links send most of the time."""
    region_of = network.regions
    sending: dict[Regions, float] = {}
    for link in used.links:
        pair = frozenset((region_of[link.source], region_of[link.target]))
        sending[pair] = max(sending.get(pair, 0.0), link.utilisation)
    for pair in sorted(sending, key=lambda each: (-sending[each], sorted(each)))[:_PAIRS]:
        yield Change(
            kind="bandwidth",
            text=f"twice the bandwidth of the links {_named(pair)}",
            scenario=_with_network(scenario, scaled_rules(network, {pair}, bandwidth=_FASTER)),
        )
    across = {pair for pair in sending if len(pair) > 1}
    where = "between regions" if across else "of all links"
    closer = scaled_rules(network, across or set(sending), latency=_CLOSER)
    yield Change(
        kind="latency",
        text=f"half the latency {where}",
        scenario=_with_network(scenario, closer),
    )


def _named(pair: Regions) -> str:
    names = sorted(pair)
    return f"within {names[0]}" if len(names) == 1 else f"between {names[0]} and {names[1]}"


def scaled_rules(
    network: RuleNetwork,
    pairs: Collection[Regions],
    *,
    bandwidth: float = 1.0,
    latency: float = 1.0,
) -> RuleNetwork:
    """Rules by which links between some pairs of regions have others, by these factors.

    A region with itself is a set of one.
    """

    def scaled(rule: LinkRule) -> LinkRule:
        return LinkRule(
            _times(rule.bandwidth_bytes_per_s, bandwidth), _times(rule.latency_s, latency)
        )

    between = dict(network.between_regions)
    for pair in pairs:
        here, there = min(pair), max(pair)
        if (rule := network.region_rule(here, there)) is not None:
            between[here, there] = scaled(rule)
    links = {
        ends: scaled(rule) if frozenset(map(network.regions.__getitem__, ends)) in pairs else rule
        for ends, rule in network.links.items()
    }
    return replace(network, between_regions=between, links=links)


def _times(quantity: Spread, factor: float) -> Spread:
    return Spread(quantity.mean * factor, quantity.spread * factor)
