"""The inputs of the mixed-integer program, as plain numbers that another process can be given."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem


@dataclass(frozen=True, slots=True)
class MilpInputs:
    """A planning problem, with all rates in tokens per second, and the options of the program.

    Attributes
    ----------
    num_layers
        Layers of the LLM.
    tokens_per_s
        Per node, its throughput with k layers, for k = 0 to the most that it may hold.
    links
        Capacity of the link from the row's to the column's machine, the coordinator last; 0 where
        there is no link.
    inbound, outbound
        Per node, the capacity of its network interface from and to other nodes.
    token_inbound, token_outbound
        Per machine, the coordinator last, the same capacity where only token ids pass.
    partial_inference
        Whether a request may enter a node at any of its layers.
    max_stages
        Most nodes of any route that the layers allow; None for no limit.
    strengthen
        Whether to add constraints that the published program does not have, see
        :func:`.formulation.build`.
    bound
        A proved upper bound on the flow of any placement; infinite if none is known.
    interchangeable
        Groups of two or more interchangeable nodes: swapping their layers changes no flow.
    """

    num_layers: int
    tokens_per_s: tuple[tuple[float, ...], ...]
    links: tuple[tuple[float, ...], ...]
    inbound: tuple[float, ...]
    outbound: tuple[float, ...]
    token_inbound: tuple[float, ...]
    token_outbound: tuple[float, ...]
    partial_inference: bool = False
    max_stages: int | None = None
    strengthen: bool = True
    bound: float = inf
    interchangeable: tuple[tuple[int, ...], ...] = ()

    @property
    def num_nodes(self) -> int:
        """Number of nodes; also the coordinator's index."""
        return len(self.tokens_per_s)

    def max_layers(self, node: int) -> int:
        """The most layers that a node may hold."""
        return len(self.tokens_per_s[node]) - 1


def milp_inputs(
    problem: PlanningProblem,
    *,
    max_stages: int | None = None,
    strengthen: bool = True,
    bound: float = inf,
) -> MilpInputs:
    """The inputs of the program for a problem; the parameters are attributes of the result."""
    return MilpInputs(
        num_layers=problem.num_layers,
        tokens_per_s=tuple(problem.kind(node).tokens_per_s for node in range(len(problem))),
        links=tuple(map(tuple, problem.link_tokens_per_s.tolist())),
        inbound=tuple(problem.inbound_tokens_per_s.tolist()),
        outbound=tuple(problem.outbound_tokens_per_s.tolist()),
        token_inbound=tuple(problem.token_inbound_tokens_per_s.tolist()),
        token_outbound=tuple(problem.token_outbound_tokens_per_s.tolist()),
        partial_inference=problem.partial_inference,
        max_stages=max_stages,
        strengthen=strengthen,
        bound=bound,
        interchangeable=interchangeable_nodes(problem),
    )


def interchangeable_nodes(problem: PlanningProblem) -> tuple[tuple[int, ...], ...]:
    """Groups of interchangeable nodes: of one kind, with equal network interfaces and links.

    Two nodes are interchangeable if swapping them leaves the capacities of all links unchanged.
    The relation is transitive, so comparing with one node of a group is enough.
    """
    groups: list[list[int]] = []
    for node in range(len(problem)):
        for group in groups:
            if _are_interchangeable(problem, group[0], node):
                group.append(node)
                break
        else:
            groups.append([node])
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _are_interchangeable(problem: PlanningProblem, one: int, other: int) -> bool:
    if problem.kind_of[one] != problem.kind_of[other]:
        return False
    interfaces = (
        problem.inbound_tokens_per_s,
        problem.outbound_tokens_per_s,
        problem.token_inbound_tokens_per_s,
        problem.token_outbound_tokens_per_s,
    )
    if any(speed[one] != speed[other] for speed in interfaces):
        return False
    links: npt.NDArray[np.float64] = problem.link_tokens_per_s
    order = list(range(len(links)))
    order[one], order[other] = other, one
    rows_equal = np.array_equal(links[one][order], links[other])
    return rows_equal and np.array_equal(links[order, one], links[:, other])
