"""Chains of stages for links that never bind: which kinds of nodes form a stage.

A stage is a set of nodes that hold the same layers in parallel. For a target of F tokens per
second, a *pattern* is a multiset of kinds whose throughputs with k layers sum to F or more, with
k as large as possible. Where links carry whatever the nodes compute, the order of stages does not
matter: a chain is a multiset of patterns, and the most layers that a cluster can hold at F is the
optimum of a small integer program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from helixsim.planner.problem import NodeKind
from helixsim.planner.search_budget import DEFAULT_BUDGET, SearchBudget
from helixsim.planner.solver import MAXIMIZE, new_model

MAX_PATTERN_SIZE = 5
"""Most nodes of a pattern: their number grows exponentially, and larger ones rarely help."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Nodes that hold the same layers.

    Attributes
    ----------
    counts
        Number of nodes of each kind.
    num_layers
        Layers that each of them holds.
    tokens_per_s
        Their total throughput.
    """

    counts: tuple[int, ...]
    num_layers: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Chain:
    """Patterns, each as often as it is used, that carry `tokens_per_s` through all layers."""

    patterns: tuple[Pattern, ...]
    tokens_per_s: float

    @property
    def num_layers(self) -> int:
        """Layers of all stages together; may be more than the LLM has."""
        return sum(pattern.num_layers for pattern in self.patterns)


def common_layers(kinds: Sequence[NodeKind], target: float) -> tuple[int, float]:
    """The most layers with which nodes in parallel carry a target, and their throughput then.

    All nodes hold the same number of layers.

    Parameters
    ----------
    kinds
        The kind of each node.
    target
        Tokens per second that they must carry together.

    Returns
    -------
    tuple
        Number of layers and tokens per second; 0 and 0.0 if even one layer is too many.
    """
    for k in range(min(kind.max_layers for kind in kinds), 0, -1):
        total = sum(kind.tokens_per_s[k] for kind in kinds)
        if total >= target:
            return k, total
    return 0, 0.0


def patterns_for(kinds: Sequence[NodeKind], target: float) -> list[Pattern]:
    """All patterns that carry a target and that no pattern with one node less replaces."""
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
    """Whether a known pattern with one node less holds as many layers."""
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
    budget: SearchBudget = DEFAULT_BUDGET,
) -> Chain | None:
    """Find stages that all carry a target and together hold `num_layers`.

    Exact for stages of up to `MAX_PATTERN_SIZE` nodes, unless the solver runs out of time.

    Parameters
    ----------
    target
        Tokens per second that every stage carries.
    max_stages
        Most stages.
    solver, seed
        See :func:`~helixsim.planner.solver.new_model`.

    Returns
    -------
    Chain or None
        None if there is no such chain.

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
    model.optimize(max_seconds=budget.chain_solver_s)
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
    budget: SearchBudget = DEFAULT_BUDGET,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Chain]:
    """Find chains of increasing flow by bisection; the last one is the best.

    Parameters
    ----------
    highest
        An upper bound on the flow, in tokens per second.
    budget
        When the bisection ends.
    stop
        Called before every integer program; true ends the bisection.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    low, high = 0.0, highest
    while (
        high > max(low * (1 + budget.chain_precision), highest * budget.chain_floor) and not stop()
    ):
        target = (low + high) / 2
        chain = longest_chain(
            kinds,
            target,
            num_layers,
            max_stages=max_stages,
            solver=solver,
            seed=seed,
            budget=budget,
        )
        if chain is None:
            high = target
        else:
            low = max(chain.tokens_per_s, target)
            yield chain
