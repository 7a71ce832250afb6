"""Where the time of passes goes on the routes of a run: computing, latency, sending, waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from helixsim.control.control_plane import node_scheduler_name
from helixsim.control.node_schedulers import NODE_SCHEDULERS, decodes_loop
from helixsim.placement.topology import PlacedLink, PlacedNode, Topology
from helixsim.placement.ways_back import way_back
from helixsim.studies.explain_measures import Measures

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult
    from helixsim.scenario.resolved import Scenario

_FAR = 5.0
"""Without regions, some links are far if the longest latency is this multiple of the least."""
_LONG = 0.99
"""Share of prompts that are not longer than a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTimes:
    """Means over the routes of a run's requests, in seconds.

    Attributes
    ----------
    decode_s, ttft_s
        Mean decode latency and time to first token, as measured; None without any.
    own_decode_s
        Time of a decode in batches of the usual size on all nodes of its route, and on its links,
        without any wait.
    crossing_s, decode_crossing_s
        Latency of the far links of a route (:func:`far_links`), and of a decode: the way from the
        coordinator and back to it is not part of decodes that loop at the nodes.
    crossings
        Far links of a route.
    prompt_transfer_s
        Time to send the activations of a mean prompt over all links of a route.
    prompt_work_share
        Share of prompts in the work of the nodes: prompts and decodes with their times per layer.
    long_prompt_tokens
        99 of 100 prompts are no longer.
    admission_wait_s, waiting
        Mean time from arrival to the first departure, and the mean number of requests that wait.
    arrived
        Requests that arrived.
    """

    decode_s: float | None
    ttft_s: float | None
    own_decode_s: float
    crossing_s: float
    decode_crossing_s: float
    crossings: float
    prompt_transfer_s: float
    prompt_work_share: float
    long_prompt_tokens: int
    admission_wait_s: float
    waiting: float
    arrived: int


def route_times(
    scenario: Scenario, topology: Topology, result: RunResult, used: Measures
) -> RouteTimes:
    """Follow the routes of a run's requests."""
    requests, summary = result.requests, result.summary
    counted = Counter(_paths(topology, result))
    total = max(1, sum(counted.values()))
    batch = {node.name: max(1.0, node.batch) for node in used.nodes}
    prompt_tokens = scenario.workload.mean_prompt_tokens
    own = crossing = decode_crossing = crossings = transfer = prompt_work = decode_work = 0.0
    answers = scenario.workload.mean_output_tokens
    far, loops = far_links(topology), _loops(scenario)
    for (home, names), count in counted.items():
        weight = count / total
        nodes = [_node(topology, name) for name in names]
        for hop in _hops(topology, home, nodes):
            in_decodes = weight * (not (loops and home in (hop.source, hop.target)))
            own += in_decodes * (hop.latency_s + hop.bytes_per_token / hop.bandwidth_bytes_per_s)
            if not topology.is_front_end(hop.target):
                size = hop.bytes_per_token * prompt_tokens
                transfer += weight * size / hop.bandwidth_bytes_per_s
            if hop.index in far:
                crossing += weight * hop.latency_s
                decode_crossing += in_decodes * hop.latency_s
                crossings += weight
        if loops and len(nodes) > 1:
            ends, front_end = (nodes[-1], nodes[0]), home - topology.coordinator
            network = scenario.cluster.network
            back = way_back(topology, network, ends[0].index, ends[1].index, front_end)
            own += weight * back.latency_s
            if ends[0].region != ends[1].region:
                decode_crossing += weight * back.latency_s
        entry = 0
        for node in nodes:
            layers = node.end_layer - max(node.start_layer, entry)
            entry = node.end_layer
            decodes_s = layers * node.profile.decode(batch[node.name])
            own += weight * decodes_s
            prompt_work += weight * layers * node.profile.prefill(prompt_tokens)
            decode_work += weight * answers * decodes_s / batch[node.name]
    waits = (requests["dispatch_s"] - requests["arrival_s"]).dropna()
    prompts = requests["prompt_tokens"].sort_values()
    window_s = max(summary["simulated_s"], 1e-9)
    return RouteTimes(
        decode_s=summary["decode_latency_s"]["mean"],
        ttft_s=summary["ttft_s"]["mean"],
        own_decode_s=own,
        crossing_s=crossing,
        decode_crossing_s=decode_crossing,
        crossings=crossings,
        prompt_transfer_s=transfer,
        prompt_work_share=prompt_work / max(prompt_work + decode_work, 1e-12),
        long_prompt_tokens=int(prompts.iloc[int(_LONG * len(prompts))]) if len(prompts) else 0,
        admission_wait_s=float(waits.mean()) if len(waits) else 0.0,
        waiting=float(waits.sum()) / window_s,
        arrived=int(summary["requests"]["arrived"]),
    )


def far_links(topology: Topology) -> frozenset[int]:
    """The numbers of the links between regions; without regions, of links with long latencies.

    Links are long whose latency is above half of the longest, if that is several times the
    shortest.
    """
    links = topology.links
    regions = {topology.machine(number).region for number in range(topology.num_machines)}
    if len(regions) > 1:
        return frozenset(
            link.index
            for link in links
            if topology.machine(link.source).region != topology.machine(link.target).region
        )
    least_s = far_latency_s([link.latency_s for link in links])
    return frozenset(link.index for link in links if link.latency_s > least_s)


def far_latency_s(latencies_s: Collection[float]) -> float:
    """Links of one region with more latency are far; infinite where all are about as close."""
    longest = max(latencies_s, default=0.0)
    return longest / 2 if longest > _FAR * min(latencies_s, default=0.0) else inf


def _loops(scenario: Scenario) -> bool:
    return decodes_loop(NODE_SCHEDULERS.get(node_scheduler_name(scenario)))


def _paths(topology: Topology, result: RunResult) -> list[tuple[int, tuple[str, ...]]]:
    """For each request with a route, its front end's machine and the nodes."""
    requests = result.requests
    machines = {topology.name(home): home for home in topology.front_end_machines}
    homes = [topology.coordinator] * len(requests)
    if "front_end" in requests:
        homes = [machines.get(name, topology.coordinator) for name in requests["front_end"]]
    return [
        (home, tuple(stage.partition("[")[0] for stage in route.split()))
        for home, route in zip(homes, requests["route"], strict=True)
        if isinstance(route, str) and route
    ]


def _node(topology: Topology, name: str) -> PlacedNode:
    return next(node for node in topology.nodes if node.name == name)


def _hops(topology: Topology, home: int, nodes: list[PlacedNode]) -> list[PlacedLink]:
    """The links of a route from its front end through its nodes and back."""
    machines = [home, *(node.index for node in nodes), home]
    found = []
    for source, target in pairwise(machines):
        found += [link for link in topology.outgoing[source] if link.target == target]
    return found
