"""How requests spread over groups of alike nodes, and over the links between groups.

A group is all nodes of one class that hold the same layers. Under a balanced flow, nodes with the
same layers share requests by their throughput, and requests stay at their *site* (machines with
fast links between them) as far as the nodes there have room: only the rest crosses slow links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem, Ranges
from helixsim.planner.simulated.alike import AlikeNodes
from helixsim.planner.simulated.layer_flow import span_shares
from helixsim.planner.simulated.link_table import LinkTable

_SAMPLED = 16
"""Nodes of a class whose links give the mean of the class."""
_SLOW = 4.0
"""Time of a token on a link, relative to the fastest link, from which a link is slow."""


@dataclass(slots=True)
class Group:
    """Alike nodes with the same layers.

    Attributes
    ----------
    kind
        Number of their class.
    start, end
        They hold the layers ``[start, end)``.
    count
        Number of nodes.
    share
        Share of all requests that pass each node.
    """

    kind: int
    start: int
    end: int
    count: int
    share: float = 0.0

    @property
    def whole(self) -> float:
        """Share of all requests that pass the group."""
        return self.count * self.share


class ClassLinks:
    """Links between classes of alike nodes, as the means of the links between their nodes.

    Parameters
    ----------
    problem, alike
        The planning problem, and its classes.
    mean_tokens
        Mean tokens of a pass, to tell slow links from fast ones.

    Attributes
    ----------
    s_per_byte, latency_s
        From the row's to the column's class: lists of lists, all front ends last, as one machine.
        Infinite where there is no link.
    site_of
        For every class, the number of its site.
    """

    def __init__(self, problem: PlanningProblem, alike: AlikeNodes, mean_tokens: float) -> None:
        table = LinkTable(problem)
        groups = [*alike.members, (len(problem),)]
        with np.errstate(divide="ignore"):
            per_byte = 1 / table.bandwidth
        self.s_per_byte = [[_mean(per_byte, a, b) for b in groups] for a in groups]
        self.latency_s = [[_mean(table.latency_s, a, b) for b in groups] for a in groups]
        num_bytes = mean_tokens * problem.llm.activation_bytes_per_token
        times = [
            [latency + num_bytes * byte for latency, byte in zip(*rows, strict=True)][:-1]
            for rows in zip(self.latency_s[:-1], self.s_per_byte[:-1], strict=True)
        ]
        self.site_of = _sites(times)


def _mean(table: npt.NDArray[np.float64], sources: Sequence[int], targets: Sequence[int]) -> float:
    values = [table[a, b] for a in sources[:_SAMPLED] for b in targets[:_SAMPLED] if a != b]
    return float(sum(values) / len(values)) if values else 0.0


def _sites(times: Sequence[Sequence[float]]) -> list[int]:
    """Classes that are connected by links which are not slow are at one site."""
    pairs = [(a, b) for a in range(len(times)) for b in range(a)]
    between = [min(times[a][b], times[b][a]) for a, b in pairs]
    within = [row[kind] for kind, row in enumerate(times) if row[kind] > 0]  # 0 for a single node
    fastest = min([*between, *within], default=0.0)
    site_of = list(range(len(times)))
    for a, b in pairs:
        if max(times[a][b], times[b][a]) <= _SLOW * fastest:
            old, new = site_of[a], site_of[b]
            site_of = [new if site == old else site for site in site_of]
    return site_of


def groups_of(problem: PlanningProblem, alike: AlikeNodes, ranges: Ranges) -> list[Group]:
    """The groups that requests pass, with their shares, in the order of their last layers.

    Empty without a route through all layers.
    """
    counts: dict[tuple[int, int, int], int] = {}
    class_of = alike.class_of
    for node, (start, end) in ranges.items():
        key = (end, start, class_of[node])
        counts[key] = counts.get(key, 0) + 1
    capacity: dict[tuple[int, int], float] = {}
    rates = []
    for (end, start, kind), count in sorted(counts.items()):
        rate = problem.tokens_per_s(alike.members[kind][0], end - start)
        rates.append((Group(kind, start, end, count), rate))
        capacity[start, end] = capacity.get((start, end), 0.0) + count * rate
    shares = span_shares(capacity, problem.num_layers)
    found = []
    for group, rate in rates:
        span = (group.start, group.end)
        if (whole := shares.get(span)) is not None:
            group.share = whole * rate / capacity[span]
            found.append(group)
    return found


def passed_on(
    sources: Sequence[Group],
    targets: Sequence[Group],
    site_of: Sequence[int],
    *,
    stays: bool,
) -> list[list[float]]:
    """Share of all requests that go from each group to each group that holds the next layer.

    Parameters
    ----------
    sources, targets
        Groups that end, and groups that start at one layer.
    site_of
        For every class, its site.
    stays
        Whether requests stay at their site where they can.

    Returns
    -------
    list
        A row for each source, a column for each target.
    """
    total = sum(target.whole for target in targets)
    if not stays or len({site_of[group.kind] for group in (*sources, *targets)}) == 1:
        return [[source.whole * target.whole / total for target in targets] for source in sources]
    offered, wanted = _by_site(sources, site_of), _by_site(targets, site_of)
    kept = {site: min(amount, wanted.get(site, 0.0)) for site, amount in offered.items()}
    crossing = sum(offered.values()) - sum(kept.values())
    rows = []
    for source in sources:
        here = site_of[source.kind]
        of_site = source.whole / offered[here]
        row = []
        for target in targets:
            there = site_of[target.kind]
            amount = kept[here] if here == there else 0.0
            if crossing > 0:
                missing = wanted[there] - kept.get(there, 0.0)
                amount += (offered[here] - kept[here]) * missing / crossing
            row.append(amount * of_site * target.whole / wanted[there])
        rows.append(row)
    return rows


def _by_site(groups: Sequence[Group], site_of: Sequence[int]) -> Mapping[int, float]:
    found: dict[int, float] = {}
    for group in groups:
        site = site_of[group.kind]
        found[site] = found.get(site, 0.0) + group.whole
    return found
