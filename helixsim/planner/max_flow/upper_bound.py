"""Upper bounds on the maximum flow of any placement.

Fix a target of F tokens per second. Every token passes every layer once, in some node that holds
the layer, and a node carries at most its throughput with the layers that it holds, wherever
tokens enter them. So the throughputs of the nodes that hold a layer sum to F or more. The bound
uses only this condition, which holds for every placement, with and without partial inference.

A node of kind t that holds k layers provides k slots, so a slot (t, k) costs 1/k of the node. A
layer needs a *cover*: slots that together carry F. If every cover costs 1 or more under prices
mu_t on the nodes of each kind, then by duality at most sum N_t mu_t layers can be covered. A
linear program over the covers found so far gives prices; a knapsack finds the cheapest cover under
them. Prices divided by the cost of that cover are a proof at any time (Farley 1990). This is the
configuration linear program, solved by column generation.

Links between nodes enter in two ways. A node carries no more than its own links and interfaces do.
And a token stays within one region, or crosses from one to another: no more tokens are served than
cross, and than each region serves by itself (:mod:`.region_cuts`).

A limit on the stages of a route is one more resource: tokens that pass a layer in a node with k
layers use at least 1/k of a stage there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.max_flow.cover_program import SAFETY, CoverProgram, NodeClass
from helixsim.planner.max_flow.region_cuts import region_cut
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound, and the resource that limits the flow.

    Attributes
    ----------
    tokens_per_s
        No placement has a greater maximum flow.
    limit
        ``machines``, ``links with the coordinator``, ``network interface of the coordinator`` or
        ``links between regions``.
    prices
        Machine type -> layers that one more node of this type could hold at the flow of the
        bound; empty where machines do not limit it.
    stage_price
        Layers that one more stage would add, if stages are limited.
    """

    tokens_per_s: float
    limit: str
    prices: dict[str, float] = field(default_factory=dict)
    stage_price: float = 0.0


def node_classes(
    problem: PlanningProblem, budget: SearchBudget = DEFAULT_BUDGET
) -> list[NodeClass]:
    """Group the nodes by kind and by what their links and network interfaces carry."""
    caps = node_caps(problem)
    counts: dict[tuple[int, float], int] = {}
    for node, kind in enumerate(problem.kind_of):
        cap = inf if caps[node] >= max(problem.kinds[kind].tokens_per_s) else float(caps[node])
        if cap > 0:
            counts[kind, cap] = counts.get((kind, cap), 0) + 1
    if len(counts) > budget.bound_classes:
        merged: dict[tuple[int, float], int] = {}
        for (kind, _), count in counts.items():
            cap = max(cap for other, cap in counts if other == kind)
            merged[kind, cap] = merged.get((kind, cap), 0) + count
        counts = merged
    return [
        NodeClass(
            problem.kinds[kind].machine_type,
            tuple(min(rate, cap) for rate in problem.kinds[kind].tokens_per_s),
            count,
        )
        for (kind, cap), count in counts.items()
    ]


def node_caps(problem: PlanningProblem) -> npt.NDArray[np.float64]:
    """Shape (n,): most tokens per second that each node's links and network interface carry.

    An interface carries more tokens where only token ids pass it: if the node receives from the
    coordinator only, or sends to it only.
    """
    links, last = problem.link_tokens_per_s, len(problem)  # the coordinator is the last machine
    most = np.full(last, inf)
    for into, nic, token_nic in (
        (links, problem.inbound_tokens_per_s, problem.token_inbound_tokens_per_s),
        (links.T, problem.outbound_tokens_per_s, problem.token_outbound_tokens_per_s),
    ):
        alone = np.minimum(into[last, :last], token_nic[:last])
        most = np.minimum(most, np.maximum(alone, np.minimum(into[:, :last].sum(axis=0), nic)))
    return most


def coordinator_bound(problem: PlanningProblem) -> Bound:
    """The bound by the coordinator's network interface and links."""
    last = len(problem)  # the coordinator is the last machine
    nic = min(
        problem.token_outbound_tokens_per_s[last],
        problem.token_inbound_tokens_per_s[last],
    )
    rates = np.array([max(problem.kind(node).tokens_per_s) for node in range(last)])
    links = min(
        np.minimum(problem.link_tokens_per_s[last, :last], rates).sum(),
        np.minimum(problem.link_tokens_per_s[:last, last], rates).sum(),
    )
    if nic < links:
        return Bound(float(nic), "network interface of the coordinator")
    return Bound(float(links), "links with the coordinator")


def trivial_bound(problem: PlanningProblem) -> Bound:
    """The most layers x tokens per second of all nodes, divided by the layers of the LLM."""
    classes = node_classes(problem)
    work = [max(k * rate for k, rate in enumerate(c.tokens_per_s)) for c in classes]
    flow = sum(c.count * each for c, each in zip(classes, work, strict=True)) / problem.num_layers
    prices = {c.machine_type: each / flow for c, each in zip(classes, work, strict=True) if flow}
    machines = Bound(flow * (1 + SAFETY), "machines", prices)
    return min(machines, coordinator_bound(problem), key=lambda bound: bound.tokens_per_s)


def upper_bound(
    problem: PlanningProblem,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    at_least: float = 0.0,
    budget: SearchBudget = DEFAULT_BUDGET,
    stop: Callable[[], bool] = lambda: False,
) -> Bound:
    """Bound the flow of every placement by the lowest of all bounds in this module.

    The bound holds for every placement of the problem, aligned or with partial inference, over
    any links. With `max_stages` it holds for placements with at most this number of stages.

    Parameters
    ----------
    max_stages
        Most stages of a route.
    solver
        Solver of the linear programs, see :func:`~helixsim.planner.solver.new_model`.
    at_least
        A flow that is known to be possible, in tokens per second.
    budget
        When the bisection ends.
    stop
        Called regularly; true ends the search, and the bound proved by then is returned.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    best = trivial_bound(problem)
    classes = node_classes(problem, budget)
    best = cover_bound(
        classes,
        problem.num_layers,
        best,
        max_stages=max_stages,
        solver=solver,
        at_least=at_least,
        budget=budget,
        stop=stop,
    )
    if stop():
        return best
    most = np.array([max(problem.kind(node).tokens_per_s) for node in range(len(problem))])
    between = region_cut(
        problem,
        most,
        best.tokens_per_s,
        lambda part: (
            upper_bound(
                part, max_stages=max_stages, solver=solver, budget=budget, stop=stop
            ).tokens_per_s
        ),
    )
    return min(best, Bound(between, "links between regions"), key=lambda each: each.tokens_per_s)


def cover_bound(
    classes: Sequence[NodeClass],
    num_layers: int,
    best: Bound,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    at_least: float = 0.0,
    budget: SearchBudget = DEFAULT_BUDGET,
    stop: Callable[[], bool] = lambda: False,
) -> Bound:
    """Lower a bound by the linear program over covers.

    Parameters
    ----------
    classes
        Nodes by what they carry with each number of layers, in any unit per second.
    num_layers
        Layers of the LLM.
    best
        A bound that is known.
    max_stages, solver, at_least, budget, stop
        As of :func:`upper_bound`.
    """
    cover_lp = CoverProgram(classes, num_layers, max_stages, solver, budget)
    low = at_least
    least = best.tokens_per_s * budget.bound_floor
    while max(low, least) < best.tokens_per_s * (1 - budget.bound_precision) and not stop():
        # Without a known flow, the answer is mostly near the bound.
        target = (low + best.tokens_per_s) / 2 if low else best.tokens_per_s * 0.8
        if cover_lp.is_possible(target, stop):
            low = target
        elif not stop():
            best = Bound(target, "machines", cover_lp.prices(), cover_lp.stage_price)
    return best
