"""Even stages for large clusters: stages of equal length and nearly equal throughput.

With a dozen nodes or more per layer, most nodes do best with few layers, and the flow depends
only on the slowest stage.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import FlowSearch
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget


def offer_even_stages(search: FlowSearch) -> None:
    """Report even stages of every possible length up to the budget's longest."""
    problem = search.problem
    for length in range(1, search.budget.even_longest_stage + 1):
        stages = -(-problem.num_layers // length)
        if stages <= (search.max_stages or stages) and stages <= len(problem):
            if search.out_of_time:
                return
            search.offer(even_stages(problem, length, search.budget))


def even_stages(
    problem: PlanningProblem, length: int, budget: SearchBudget = DEFAULT_BUDGET
) -> dict[int, tuple[int, int]]:
    """Distribute the nodes over stages of `length` layers (the last one may be shorter).

    The nodes, fastest kind first, join the stage with the least throughput. Then pairs of nodes
    are swapped as long as that raises the throughput of the slowest stage. Nodes that cannot hold
    a stage stay idle.
    """
    starts = range(0, problem.num_layers, length)
    sizes = [min(length, problem.num_layers - start) for start in starts]
    rates = np.array(
        [[k.tokens_per_s[n] if n <= k.max_layers else 0.0 for k in problem.kinds] for n in sizes]
    )
    counts = _distribute(rates, [kind.count for kind in problem.kinds])
    _swap_until_even(rates, counts, budget.even_swaps)
    waiting: list[list[int]] = [[] for _ in problem.kinds]
    for node in reversed(range(len(problem))):
        waiting[problem.kind_of[node]].append(node)
    return {
        waiting[kind].pop(): (start, start + size)
        for start, size, row in zip(starts, sizes, counts.tolist(), strict=True)
        for kind, n in enumerate(row)
        for _ in range(n)
    }


def _distribute(rates: npt.NDArray[np.float64], available: list[int]) -> npt.NDArray[np.intp]:
    """Shape (stages, kinds): number of nodes of each kind in each stage."""
    counts = np.zeros(rates.shape, dtype=np.intp)
    totals = np.zeros(len(rates))
    for kind in np.argsort(-rates[0], kind="stable"):
        for _ in range(available[kind]):
            # The last stage may be shorter, so that more kinds can hold it.
            stage = int(np.argmin(np.where(rates[:, kind] > 0, totals, np.inf)))
            if rates[stage, kind] > 0:
                counts[stage, kind] += 1
                totals[stage] += rates[stage, kind]
    return counts


def _swap_until_even(
    rates: npt.NDArray[np.float64], counts: npt.NDArray[np.intp], max_swaps: int
) -> None:
    """Swap a node of the slowest stage for one of another stage while the slower of both gains."""
    for _ in range(max_swaps):
        totals = (counts * rates).sum(axis=1)
        low = int(np.argmin(totals))
        given = counts[low] > 0
        gain = rates[low][np.newaxis, :] - rates[low][:, np.newaxis]  # [give, take]
        loss = rates[:, np.newaxis, :] - rates[:, :, np.newaxis]  # [stage, give, take]
        after = np.minimum(totals[low] + gain[np.newaxis], totals[:, np.newaxis, np.newaxis] - loss)
        possible = given[np.newaxis, :, np.newaxis] & (counts > 0)[:, np.newaxis, :]
        possible &= (rates > 0)[:, :, np.newaxis] & (rates[low] > 0)[np.newaxis, np.newaxis, :]
        possible[low] = False
        after = np.where(possible, after, -np.inf)
        stage, give, take = np.unravel_index(int(np.argmax(after)), after.shape)
        if after[stage, give, take] <= totals[low] * (1 + 1e-9):
            return
        counts[low, give] -= 1
        counts[low, take] += 1
        counts[stage, give] += 1
        counts[stage, take] -= 1
