"""What one machine of each kind costs, holds, and serves at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

from helixsim.errors import InputError
from helixsim.planner.problem import PlanningProblem, planning_problem
from helixsim.planner.served.node_rates import UnboundedError
from helixsim.planner.served_bound import machine_bounds
from helixsim.scenario.resolved import Scenario
from helixsim.studies.sizing.offers import Fleet

_OVER_FLOW = 4.0
"""Without a bound, machines are assumed to serve at most this many times their typical rate."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """One machine of an offer.

    Attributes
    ----------
    dollars_per_hour
        Its price.
    watts
        Its power; None if it is not known.
    layers
        The most layers that it holds.
    group
        Machines of this kind that together hold the LLM.
    bound_requests_per_s
        It adds no more to what any cluster of these kinds serves; infinite if no bound is known.
    guess_requests_per_s
        The bound, or without one a figure that is probably above what it serves.
    """

    dollars_per_hour: float
    watts: float | None
    layers: int
    group: int
    bound_requests_per_s: float
    guess_requests_per_s: float


def machine_facts(fleet: Fleet) -> tuple[MachineFacts, ...]:
    """The facts of each offer.

    The bounds are for a cluster in which the machines of every offer hold the LLM by
    themselves: in no set of machines does a request pass all layers in less time.

    Raises
    ------
    InputError
        If a price is not known, or machines are not connected.
    """
    count = len(fleet.offers)
    profiles = [fleet.profile(index) for index in range(count)]
    num_layers = fleet.llm.num_layers
    layers = [min(profile.max_layers, num_layers) for profile in profiles]
    groups = [ceil(num_layers / most) for most in layers]
    owned = [offer.owned for offer in fleet.offers]
    whole = fleet.scenario(tuple(map(max, groups, owned)))
    problem = replace(planning_problem(whole), partial_inference=True)
    try:
        bounds = machine_bounds(whole, problem)
    except UnboundedError:
        bounds = (inf,) * len(problem)
    typical = [_typical(whole, problem, node) for node in range(len(problem))]
    found = []
    for index, offer in enumerate(fleet.offers):
        price = whole.dollars_per_hour.get(offer.machine_type)
        if price is None:
            raise InputError(
                f"no price of {offer.machine_type} is known; give one, such as "
                f"{offer.machine_type}=2.50",
                where="--prices",
            )
        node = fleet.first_node(index, whole)
        guess = bounds[node] if bounds[node] < inf else _OVER_FLOW * typical[node]
        found.append(
            MachineFacts(
                price,
                whole.watts.get(offer.machine_type),
                layers[index],
                groups[index],
                bounds[node],
                guess,
            )
        )
    return tuple(found)


def _typical(scenario: Scenario, problem: PlanningProblem, node: int) -> float:
    """Requests per second that a node adds at typical batches."""
    workload = scenario.workload
    tokens = workload.mean_prompt_tokens + workload.mean_output_tokens
    rates = problem.kind(node).tokens_per_s
    return max(k * rate for k, rate in enumerate(rates)) / problem.num_layers / tokens
