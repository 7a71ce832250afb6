"""Plan, simulate and run large-language-model serving on mixed GPUs and uneven networks.

>>> from helixsim import load_scenario, simulate
>>> result = simulate(load_scenario("quickstart"))
>>> result.requests  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult, load_results
    from helixsim.models.simulation import simulate
    from helixsim.planner.plan import plan
    from helixsim.planner.result import PlanResult
    from helixsim.scenario.load import load_scenario
    from helixsim.scenario.resolved import Scenario
    from helixsim.studies.capacity import CapacityResult, capacity
    from helixsim.studies.sweep import SweepResult, sweep

__all__ = [
    "CapacityResult",
    "HelixError",
    "PlanResult",
    "RunResult",
    "Scenario",
    "SweepResult",
    "capacity",
    "load_results",
    "load_scenario",
    "plan",
    "simulate",
    "sweep",
]

_HOMES = {
    "CapacityResult": "helixsim.studies.capacity",
    "HelixError": "helixsim.errors",
    "PlanResult": "helixsim.planner.result",
    "RunResult": "helixsim.metrics.result",
    "Scenario": "helixsim.scenario.resolved",
    "SweepResult": "helixsim.studies.sweep",
    "capacity": "helixsim.studies.capacity",
    "load_results": "helixsim.metrics.result",
    "load_scenario": "helixsim.scenario.load",
    "plan": "helixsim.planner.plan",
    "simulate": "helixsim.models.simulation",
    "sweep": "helixsim.studies.sweep",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    # Imported when first used: the command line's help should not wait for networkx.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
