"""A placement by a simple rule, for scenarios that have none."""

from __future__ import annotations

from helixsim.planner.heuristics.replicas import replicas
from helixsim.planner.problem import planning_problem
from helixsim.planner.search import FlowSearch
from helixsim.scenario.resolved import Scenario


def place(scenario: Scenario) -> Scenario:
    """The scenario with a placement: its own, or one by the rule of :func:`.replica_ranges`.

    The rule takes milliseconds and gives the same placement everywhere. A plan
    (:func:`helixsim.plan`) is often better: it looks at the workload, links and simulations.

    Raises
    ------
    PlacementError, ScenarioError
        If the machines cannot hold the LLM, or are not connected.

    Examples
    --------
    >>> import helixsim
    >>> scenario = helixsim.Scenario.from_dict(
    ...     {
    ...         "name": "two-of-each",
    ...         "llm": "llama1-30b",
    ...         "cluster": {
    ...             "coordinator": {"nic": "10 Gbit/s"},
    ...             "nodes": [{"type": "A100", "count": 4, "name": "a-{i}"}],
    ...             "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
    ...         },
    ...         "workload": {"mode": "offline"},
    ...         "run": {"duration": "2 min"},
    ...     }
    ... )
    >>> helixsim.place(scenario).placement.layers
    {'a-0': (0, 15), 'a-1': (15, 30), 'a-2': (30, 45), 'a-3': (45, 60)}
    """
    if scenario.placement is not None:
        return scenario
    search = FlowSearch(planning_problem(scenario))
    replicas(search)
    return scenario.with_(placement=search.problem.placement(search.ranges))
