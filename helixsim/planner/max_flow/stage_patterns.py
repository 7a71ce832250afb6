"""Chains of stages where links do not bind: which kinds of nodes to put together.

A stage is a few nodes that hold the same layers side by side. For a target of F tokens per
second, a *pattern* is a multiset of kinds whose throughputs with k layers sum to F, k as large
as can be. Where links carry what nodes compute, the order of stages does not matter, so a chain
is a number of times each pattern, and the most layers that a cluster can serve at F is a small
integer program. Several chains side by side carry several times F, in large clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from helixsim.planner.problem import NodeKind
from helixsim.planner.solver import MAXIMIZE, new_model

MAX_PATTERN_SIZE = 5
"""Nodes of a stage, at most: larger stages hardly ever help, and there are too many."""
_HOPELESS = 1e-4
"""Share of the upper bound below which no chain is looked for."""
_MAX_SECONDS = 5.0
"""Of one integer program; they take milliseconds."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Nodes that hold the same `num_layers` layers: so many of each kind, in all `tokens_per_s`."""

    counts: tuple[int, ...]
    num_layers: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Chain:
    """Patterns, each as often as it is used; together at least `tokens_per_s` and all layers."""

    patterns: tuple[Pattern, ...]
    tokens_per_s: float

    @property
    def num_layers(self) -> int:
        """Layers of all stages; may be more than the LLM has."""
        return sum(pattern.num_layers for pattern in self.patterns)


def common_layers(kinds: Sequence[NodeKind], target: float) -> tuple[int, float]:
    """The most layers that nodes can hold side by side to carry `target`, and what they carry.

    Nodes that could hold more hold as many as the others. 0 and 0.0 if they fall short even with
    one layer each.
    """
    for k in range(min(kind.max_layers for kind in kinds), 0, -1):
        total = sum(kind.tokens_per_s[k] for kind in kinds)
        if total >= target:
            return k, total
    return 0, 0.0


def patterns_for(kinds: Sequence[NodeKind], target: float) -> list[Pattern]:
    """All patterns that carry a target and that no smaller one replaces."""
    found: dict[tuple[int, ...], Pattern] = {}
    for size in range(1, MAX_PATTERN_SIZE + 1):
        for members in combinations_with_replacement(range(len(kinds)), size):
            counts = tuple(members.count(kind) for kind in range(len(kinds)))
            if any(n > kind.count for n, kind in zip(counts, kinds, strict=True)):
                continue
            layers, total = common_layers([kinds[kind] for kind in members], target)
            if layers and not _is_dominated(counts, layers, found):
                found[counts] = Pattern(counts, layers, total)
    return list(found.values())


def _is_dominated(
    counts: tuple[int, ...], num_layers: int, found: dict[tuple[int, ...], Pattern]
) -> bool:
    """Whether the same nodes but one hold as many layers."""
    for kind, n in enumerate(counts):
        fewer = (*counts[:kind], n - 1, *counts[kind + 1 :])
        if n and fewer in found and found[fewer].num_layers >= num_layers:
            return True
    return False


def longest_chain(
    kinds: Sequence[NodeKind],
    target: float,
    num_layers: int,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    seed: int = 0,
) -> Chain | None:
    """Find stages that carry a target and together hold `num_layers`, or None if there are none.

    Exact for stages of up to `MAX_PATTERN_SIZE` nodes, unless the solver runs out of time.

    Parameters
    ----------
    target
        Tokens per second that every stage carries.
    max_stages
        Most stages.
    solver, seed
        See :func:`~helixsim.planner.solver.new_model`.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    patterns = patterns_for(kinds, target)
    if not patterns:
        return None
    model = new_model(MAXIMIZE, solver, seed)
    used = [model.add_var(var_type="I", lb=0, obj=p.num_layers) for p in patterns]
    for index, kind in enumerate(kinds):
        counts = [p.counts[index] for p in patterns]
        terms = [n * x for n, x in zip(counts, used, strict=True) if n]
        if terms:
            model += sum(terms[1:], start=terms[0]) <= kind.count
    if max_stages is not None:
        model += sum(used[1:], start=1 * used[0]) <= max_stages
    model.optimize(max_seconds=_MAX_SECONDS)
    if not model.num_solutions or model.objective_value < num_layers - 0.5:
        return None
    chosen = [
        pattern for pattern, x in zip(patterns, used, strict=True) for _ in range(round(float(x.x)))
    ]
    return Chain(tuple(chosen), min(p.tokens_per_s for p in chosen))


def best_chains(
    kinds: Sequence[NodeKind],
    num_layers: int,
    highest: float,
    *,
    max_stages: int | None = None,
    solver: str = "CBC",
    seed: int = 0,
    precision: float = 1e-4,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Chain]:
    """Find chains of greater and greater flow, by bisection; the last is the best.

    Parameters
    ----------
    highest
        An upper bound on the flow, in tokens per second.
    precision
        Relative width at which the bisection ends.
    stop
        Asked before every integer program.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    low, high = 0.0, highest
    while high > max(low * (1 + precision), highest * _HOPELESS) and not stop():
        target = (low + high) / 2
        chain = longest_chain(
            kinds, target, num_layers, max_stages=max_stages, solver=solver, seed=seed
        )
        if chain is None:
            high = target
        else:
            low = max(chain.tokens_per_s, target)
            yield chain
