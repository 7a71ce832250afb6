"""Flows from several front ends, each of which has its share of all requests.

The flow graph has one kind of flow: what leaves a front end may, in the graph, return to another.
Each front end sends its share of the total and gets as much back, and the total is the greatest for
which such a flow exists (:func:`greatest_total`). Requests return to their own front end, so the
flow over the links is made out anew from the flow of the graph (:func:`with_own_returns`): at each
node, the requests of every front end go on in the same proportions, and at last back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from helixsim.placement.topology import PlacedLink, Topology, machines_leading_to

_PRECISION = 1e-9
_MOST_ROUNDS = 100


def shares_by_machine(topology: Topology) -> dict[int, float]:
    """Machine number of each front end with a route -> its share of the requests of all these."""
    shares = {
        home: front_end.share
        for home, front_end in zip(topology.front_end_machines, topology.front_ends, strict=True)
        if home in machines_leading_to(topology, home)
    }
    whole = sum(shares.values())
    return {home: share / whole for home, share in shares.items()}


def greatest_total(most: float, cut_at: Callable[[float], tuple[float, float]]) -> float:
    """The greatest total of which each front end can send its share and get it back.

    By Newton's method: if a total is too high, a minimum cut limits the flow to its own capacity
    and the shares of the front ends that it cuts off. The next total is the one that it allows.

    Parameters
    ----------
    most
        A total that is not too low: the maximum flow whatever the shares, in tokens per second.
    cut_at
        Given a total, the maximum flow under the shares of that total, and the sum of the shares
        that are in its minimum cut, of sending and of getting back.
    """
    total = most
    for _ in range(_MOST_ROUNDS):
        value, shares = cut_at(total)
        if value >= total * (1 - _PRECISION) or shares >= 1:
            break
        total = max(0.0, (value - shares * total) / (1 - shares))
    return total


def links_back(topology: Topology, home: int) -> Sequence[Sequence[PlacedLink]]:
    """For every machine, the outgoing links by which requests of a front end get back to it.

    With one front end these are all links: there is nowhere else to get to.
    """
    if len(topology.front_ends) == 1:
        return topology.outgoing
    leading = machines_leading_to(topology, home)
    return [
        [
            link
            for link in links
            if link.target == home
            or (link.target in leading and not topology.is_front_end(link.target))
        ]
        if machine == home or not topology.is_front_end(machine)
        else []
        for machine, links in enumerate(topology.outgoing)
    ]


def with_own_returns(
    topology: Topology, link_tokens_per_s: Sequence[float], total: float
) -> tuple[float, ...]:
    """The flow over each link, in order, where requests return to their own front end.

    Parameters
    ----------
    link_tokens_per_s
        A flow over each link, in order, in which it does not matter where they return to.
    total
        Its value.
    """
    # Numbers of links are not their places where some have been left out.
    flows = dict(zip((link.index for link in topology.links), link_tokens_per_s, strict=True))
    found = dict.fromkeys(flows, 0.0)
    by_layer = sorted(topology.nodes, key=lambda node: node.end_layer)
    for home, share in shares_by_machine(topology).items():
        outgoing = links_back(topology, home)
        reaching = [0.0] * topology.num_machines
        reaching[home] = share * total
        for machine in (home, *(node.index for node in by_layer)):
            links = outgoing[machine]
            whole = sum(flows[link.index] for link in links)
            for link in links:
                part = flows[link.index] / whole if whole > 0 else 1 / len(links)
                if link.target == home:
                    part = 1.0  # whatever the flow says
                amount = reaching[machine] * part
                found[link.index] += amount
                reaching[link.target] += amount
    return tuple(found.values())
