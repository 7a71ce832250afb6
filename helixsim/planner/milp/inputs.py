"""The numbers of the mixed-integer program, plain enough to be handed to another process."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem


@dataclass(frozen=True, slots=True)
class MilpInputs:
    """A planning problem, in tokens per second, and what is asked of the program.

    Attributes
    ----------
    num_layers
        Layers of the LLM.
    tokens_per_s
        For every node, its throughput with k layers, for k = 0 to the most that it may hold.
    links
        From row to column, the coordinator last, what a link carries; 0 where there is none.
    inbound, outbound
        For every node, what its network interface carries from and to other nodes.
    token_inbound, token_outbound
        For every machine, the coordinator last, the same where only token ids pass.
    partial_inference
        Whether a request may enter a node's layers in their midst.
    max_stages
        The most nodes on any route that the layers allow; None for no limit.
    strengthen
        Add what is not in the published program, see :mod:`.strengthening`.
    bound
        A flow that no placement exceeds; infinite if none is known.
    alike
        Groups of two or more nodes that may swap their layers without changing anything.
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
    alike: tuple[tuple[int, ...], ...] = ()

    @property
    def num_nodes(self) -> int:
        """How many nodes there are; also the number of the coordinator."""
        return len(self.tokens_per_s)

    def max_layers(self, node: int) -> int:
        """The most layers that a node may hold."""
        return len(self.tokens_per_s[node]) - 1

    def fits(self, source: tuple[int, int], target: tuple[int, int]) -> bool:
        """Whether a request that leaves the layers `source` may go on in the layers `target`."""
        if self.partial_inference:
            return target[0] <= source[1] < target[1]
        return source[1] == target[0]


def milp_inputs(
    problem: PlanningProblem,
    *,
    max_stages: int | None = None,
    strengthen: bool = True,
    bound: float = inf,
) -> MilpInputs:
    """Take from a problem what the program needs; parameters as the attributes."""
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
        alike=alike_nodes(problem),
    )


def alike_nodes(problem: PlanningProblem) -> tuple[tuple[int, ...], ...]:
    """Groups of nodes of one kind, with equal network interfaces and equal links.

    Two nodes may swap if the capacities of all links stay as they are when they do; then this
    holds for all pairs of a group.
    """
    groups: list[list[int]] = []
    for node in range(len(problem)):
        for group in groups:
            if _may_swap(problem, group[0], node):
                group.append(node)
                break
        else:
            groups.append([node])
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _may_swap(problem: PlanningProblem, one: int, other: int) -> bool:
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
