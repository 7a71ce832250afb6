"""Plan, simulate and run large-language-model serving on mixed GPUs and uneven networks.

>>> import helixsim
>>> scenario = helixsim.load_scenario("quickstart")
>>> result = helixsim.simulate(scenario.with_(run={"duration": "60 s"}))
>>> result.requests  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helixsim.calibration.calibrate import calibrate
    from helixsim.calibration.fit import CalibrationResult
    from helixsim.control.node_schedulers import register_node_scheduler
    from helixsim.control.routing import register_policy
    from helixsim.errors import HelixError
    from helixsim.metrics.result import RunResult, load_results
    from helixsim.models.simulation import simulate
    from helixsim.physics.performance_model import register_performance_model
    from helixsim.placement.placement import Placement
    from helixsim.planner.place import place
    from helixsim.planner.plan import plan
    from helixsim.planner.result import PlanResult
    from helixsim.recorded.replay import ReplayResult, replay
    from helixsim.registry import register_engine
    from helixsim.scenario.load import load_scenario
    from helixsim.scenario.resolved import Scenario
    from helixsim.studies.capacity import capacity
    from helixsim.studies.capacity_result import CapacityResult
    from helixsim.studies.explain import explain
    from helixsim.studies.explain_result import Explanation
    from helixsim.studies.sweep import SweepResult, sweep
    from helixsim.traces.formats import register_trace_format

__all__ = [
    "CalibrationResult",
    "CapacityResult",
    "Explanation",
    "HelixError",
    "Placement",
    "PlanResult",
    "ReplayResult",
    "RunResult",
    "Scenario",
    "SweepResult",
    "calibrate",
    "capacity",
    "explain",
    "load_results",
    "load_scenario",
    "place",
    "plan",
    "register_engine",
    "register_node_scheduler",
    "register_performance_model",
    "register_policy",
    "register_trace_format",
    "replay",
    "simulate",
    "sweep",
]

_MODULES = {
    "CalibrationResult": "helixsim.calibration.fit",
    "CapacityResult": "helixsim.studies.capacity_result",
    "Explanation": "helixsim.studies.explain_result",
    "HelixError": "helixsim.errors",
    "Placement": "helixsim.placement.placement",
    "PlanResult": "helixsim.planner.result",
    "ReplayResult": "helixsim.recorded.replay",
    "RunResult": "helixsim.metrics.result",
    "Scenario": "helixsim.scenario.resolved",
    "SweepResult": "helixsim.studies.sweep",
    "calibrate": "helixsim.calibration.calibrate",
    "capacity": "helixsim.studies.capacity",
    "explain": "helixsim.studies.explain",
    "load_results": "helixsim.metrics.result",
    "load_scenario": "helixsim.scenario.load",
    "place": "helixsim.planner.place",
    "plan": "helixsim.planner.plan",
    "register_engine": "helixsim.registry",
    "register_node_scheduler": "helixsim.control.node_schedulers",
    "register_performance_model": "helixsim.physics.performance_model",
    "register_policy": "helixsim.control.routing",
    "register_trace_format": "helixsim.traces.formats",
    "replay": "helixsim.recorded.replay",
    "simulate": "helixsim.models.simulation",
    "sweep": "helixsim.studies.sweep",
}

_SUBMODULES = ("plots",)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type is that of the name
    # Imported on first use: the command line's help must not wait for networkx.
    from importlib import import_module

    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name.startswith("__"))})
