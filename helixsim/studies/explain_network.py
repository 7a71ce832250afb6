"""Changes of a network that an explanation tries: bandwidth and latency of what binds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from helixsim.cluster import Cluster, LinkList, LinkRule, Network, Nic, RuleNetwork, Spread
from helixsim.studies.explain_changes import Change
from helixsim.studies.explain_measures import Measures

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario

_FASTER, _CLOSER = 2.0, 0.5
"""Factors of bandwidth and latency."""
_PAIRS = 2
"""Pairs of regions of which faster links are tried: of the links that send most of the time."""

Regions = frozenset[str]
"""Two regions, or one for the links within it."""


def network_changes(scenario: Scenario, used: Measures) -> Iterator[Change]:
    """Twice the bandwidth of the links and of the interface that bind; half the latency."""
    region_of = regions_of(scenario.cluster)
    sending: dict[Regions, float] = {}
    for link in used.links:
        pair = frozenset((region_of[link.source], region_of[link.target]))
        sending[pair] = max(sending.get(pair, 0.0), link.utilisation)
    if not sending:
        return
    for pair in sorted(sending, key=lambda each: -sending[each])[:_PAIRS]:
        yield Change(
            kind="bandwidth",
            text=f"twice the bandwidth of the links {_named(pair)}",
            scenario=_scaled(scenario, {pair}, _FASTER, 1.0),
        )
    machine = used.interfaces[0].machine
    yield Change(
        kind="interface",
        text=f"twice the bandwidth of the network interface of {machine}",
        scenario=replace(scenario, cluster=_wider(scenario.cluster, machine)),
    )
    across = {pair for pair in sending if len(pair) > 1}
    where = "between regions" if across else "of all links"
    yield Change(
        kind="latency",
        text=f"half the latency {where}",
        scenario=_scaled(scenario, across or set(sending), 1.0, _CLOSER),
    )


def regions_of(cluster: Cluster) -> dict[str, str]:
    """The region of every machine."""
    found = {front_end.name: front_end.region for front_end in cluster.front_ends}
    return found | {node.name: node.region for node in cluster}


def _named(pair: Regions) -> str:
    names = sorted(pair)
    return f"within {names[0]}" if len(names) == 1 else f"between {names[0]} and {names[1]}"


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


def _scaled(
    scenario: Scenario, pairs: Collection[Regions], bandwidth: float, latency: float
) -> Scenario:
    cluster = scenario.cluster
    region_of = regions_of(cluster)
    network = scaled_network(cluster.network, region_of, pairs, bandwidth, latency)
    return replace(scenario, cluster=replace(cluster, network=network))


def scaled_network(
    network: Network,
    region_of: dict[str, str],
    pairs: Collection[Regions],
    bandwidth: float,
    latency: float,
) -> Network:
    """A network with other links between some pairs of regions.

    Parameters
    ----------
    network
        A list of links, or rules; other networks stay as they are.
    region_of
        Region of every machine.
    pairs
        The pairs of regions, of which a region with itself is a set of one.
    bandwidth, latency
        Factors of the links' bandwidths and latencies.
    """

    def is_meant(source: str, target: str) -> bool:
        return frozenset((region_of[source], region_of[target])) in pairs

    def scaled(rule: LinkRule) -> LinkRule:
        return LinkRule(
            _times(rule.bandwidth_bytes_per_s, bandwidth), _times(rule.latency_s, latency)
        )

    if isinstance(network, LinkList):
        return LinkList(
            {
                ends: replace(
                    link,
                    bandwidth_bytes_per_s=bandwidth * link.bandwidth_bytes_per_s,
                    latency_s=latency * link.latency_s,
                )
                if is_meant(*ends)
                else link
                for ends, link in network.links.items()
            }
        )
    if not isinstance(network, RuleNetwork):
        return network
    between = dict(network.between_regions)
    for pair in pairs:
        here, there = min(pair), max(pair)
        if (rule := network.region_rule(here, there)) is not None:
            between[here, there] = scaled(rule)
    links = {
        ends: scaled(rule) if is_meant(*ends) else rule for ends, rule in network.links.items()
    }
    return replace(network, between_regions=between, links=links)


def _times(quantity: Spread, factor: float) -> Spread:
    return Spread(quantity.mean * factor, quantity.spread * factor)
