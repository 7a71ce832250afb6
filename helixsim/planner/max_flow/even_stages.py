"""Even stages for large clusters: all stages equally long, the machines dealt out evenly.

With a dozen machines or more for each layer, no clever combination is needed: most machines do
best with few layers, and what counts is that no stage falls behind the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from helixsim.planner.problem import PlanningProblem
from helixsim.planner.search import Search

_LONGEST_STAGE = 12
_MAX_SWAPS = 4000


def deal_evenly(search: Search) -> None:
    """Report even stages of every length up to `_LONGEST_STAGE` layers that is possible."""
    problem = search.problem
    for length in range(1, _LONGEST_STAGE + 1):
        stages = -(-problem.num_layers // length)
        if stages <= (search.max_stages or stages) and stages <= len(problem):
            if search.out_of_time:
                return
            search.offer(even_stages(problem, length))


def even_stages(problem: PlanningProblem, length: int) -> dict[int, tuple[int, int]]:
    """Deal the machines out over stages of `length` layers (the last one may be shorter).

    The fastest first, always to the stage that is furthest behind; then machines are swapped as
    long as that brings the slowest stage forward. Machines that cannot hold so much stay idle.
    """
    starts = range(0, problem.num_layers, length)
    sizes = [min(length, problem.num_layers - start) for start in starts]
    rates = np.array(
        [[k.tokens_per_s[n] if n <= k.max_layers else 0.0 for k in problem.kinds] for n in sizes]
    )
    counts = _deal(rates, [kind.count for kind in problem.kinds])
    _swap_until_even(rates, counts)
    waiting: list[list[int]] = [[] for _ in problem.kinds]
    for node in reversed(range(len(problem))):
        waiting[problem.kind_of[node]].append(node)
    return {
        waiting[kind].pop(): (start, start + size)
        for start, size, row in zip(starts, sizes, counts.tolist(), strict=True)
        for kind, n in enumerate(row)
        for _ in range(n)
    }


def _deal(rates: npt.NDArray[np.float64], available: list[int]) -> npt.NDArray[np.intp]:
    """How many machines of each kind go to each stage."""
    counts = np.zeros(rates.shape, dtype=np.intp)
    totals = np.zeros(len(rates))
    for kind in np.argsort(-rates[0], kind="stable"):
        for _ in range(available[kind]):
            # The last stage may be shorter, and so within reach of more kinds.
            stage = int(np.argmin(np.where(rates[:, kind] > 0, totals, np.inf)))
            if rates[stage, kind] > 0:
                counts[stage, kind] += 1
                totals[stage] += rates[stage, kind]
    return counts


def _swap_until_even(rates: npt.NDArray[np.float64], counts: npt.NDArray[np.intp]) -> None:
    """Swap a machine of the slowest stage for one of any other while the slower of both gains."""
    for _ in range(_MAX_SWAPS):
        totals = (counts * rates).sum(axis=1)
        low = int(np.argmin(totals))
        mine = counts[low] > 0
        gain = rates[low][np.newaxis, :] - rates[low][:, np.newaxis]  # [mine, theirs]
        loss = rates[:, np.newaxis, :] - rates[:, :, np.newaxis]  # [stage, mine, theirs]
        after = np.minimum(totals[low] + gain[np.newaxis], totals[:, np.newaxis, np.newaxis] - loss)
        possible = mine[np.newaxis, :, np.newaxis] & (counts > 0)[:, np.newaxis, :]
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
