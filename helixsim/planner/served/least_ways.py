"""The least time that any route of any placement spends on links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helixsim.cluster import COORDINATOR, LinkList, RuleNetwork
from helixsim.planner.max_flow.region_cuts import least_crossings, partitions
from helixsim.planner.problem import PlanningProblem


@dataclass(frozen=True, slots=True)
class LeastWays:
    """Least times on links.

    Attributes
    ----------
    decode_s
        Of a decode between nodes, seconds.
    ends_s
        Of a decode from the coordinator, and back to it.
    prompt_token_s
        Of each token of a prompt that is sent on when all of it has been received, beside latency.
    """

    decode_s: float
    ends_s: float
    prompt_token_s: float


def least_ways(problem: PlanningProblem) -> LeastWays:
    """The least times of any route: as many nodes as hold the LLM, in as many regions.

    Networks other than lists and rules count with no latency.
    """
    sizes = sorted(map(problem.max_layers, problem.usable_nodes()), reverse=True)
    hops, room = 0, sizes[0]
    while room < problem.num_layers:
        hops += 1
        room += sizes[hops]
    anywhere = least_latency_s(problem, [range(len(problem))])
    decode_s, prompt_token_s = hops * anywhere, 0.0
    for groups in partitions(problem):
        crossings = least_crossings(problem, groups)
        if not crossings:
            continue
        fastest_s = 1 / _fastest_crossing(problem, groups)
        across_s = least_latency_s(problem, groups) + fastest_s
        decode_s = max(decode_s, crossings * across_s + (hops - crossings) * anywhere)
        prompt_token_s = max(prompt_token_s, crossings * fastest_s)
    return LeastWays(decode_s, 2 * _end_latency_s(problem), prompt_token_s)


def least_latency_s(problem: PlanningProblem, groups: Sequence[Sequence[int]]) -> float:
    """The least latency of a link between nodes of different groups; of one, between any nodes."""
    network, names = problem.cluster.network, problem.names
    if isinstance(network, LinkList):
        group_of = {names[node]: index for index, group in enumerate(groups) for node in group}
        return min(
            (
                link.latency_s
                for link in network.links.values()
                if link.source in group_of
                and link.target in group_of
                and (len(groups) == 1 or group_of[link.source] != group_of[link.target])
            ),
            default=0.0,
        )
    if not isinstance(network, RuleNetwork):
        return 0.0
    regions = [{network.regions.get(names[node]) for node in group} for group in groups]
    are_apart = len(groups) > 1 and sum(map(len, regions)) == len(set().union(*regions))
    rules = [network.across, *network.links.values()]
    for (here, there), rule in network.between_regions.items():
        if here != there or not are_apart:
            rules.append(rule)
    if not are_apart:
        rules.append(network.within)
    return min((rule.latency_s.at(0.0) for rule in rules if rule is not None), default=0.0)


def _end_latency_s(problem: PlanningProblem) -> float:
    """The least latency of a link with the coordinator."""
    network = problem.cluster.network
    if isinstance(network, LinkList):
        return min(
            (
                link.latency_s
                for link in network.links.values()
                if COORDINATOR in (link.source, link.target)
            ),
            default=0.0,
        )
    return least_latency_s(problem, [range(len(problem))])


def _fastest_crossing(problem: PlanningProblem, groups: Sequence[Sequence[int]]) -> float:
    """Tokens per second of the fastest link between groups; infinite without one."""
    number = len(problem)
    group_of = np.empty(number, dtype=np.intp)
    for index, group in enumerate(groups):
        group_of[list(group)] = index
    links = problem.link_tokens_per_s[:number, :number]
    fastest = float(links[group_of[:, None] != group_of[None, :]].max(initial=0.0))
    return fastest or float("inf")
