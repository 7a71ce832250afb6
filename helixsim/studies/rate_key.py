"""The key of a scenario that sets how many requests arrive per second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helixsim.errors import InputError
from helixsim.scenario.offered_load import offered_requests_per_s
from helixsim.scenario.overrides import Override, apply_overrides
from helixsim.scenario.resolved import Scenario
from helixsim.traces.rates import ConstantRate

_MAX_TOKENS_PER_S = 1e9
_MAX_RATE = 1e6


@dataclass(frozen=True, slots=True)
class RateKey:
    """The key that sets the arrival rate of a scenario.

    Attributes
    ----------
    path
        The key, such as ``workload.requests_per_s``.
    value
        Its value in the scenario.
    most
        Its highest value possible.
    requests_per_value
        Requests per second, on average, over the value.
    """

    path: str
    value: float
    most: float
    requests_per_value: float


def with_value(
    document: Mapping[str, object], path: str, value: object, folder: Path
) -> dict[str, object]:
    """A document with another value at a dotted path."""
    return apply_overrides(document, [Override(path, tuple(path.split(".")), value)], folder)


def rate_key(scenario: Scenario) -> RateKey:
    """Find the key that sets the arrival rate.

    Raises
    ------
    InputError
        If there is no rate, or the scenario's trace ends before its run does.
    """
    path, value, most = _path_and_range(scenario)
    offered = offered_requests_per_s(scenario.workload, scenario.run.duration_s)
    assert offered is not None
    return RateKey(path, value, most, offered / value)


def _path_and_range(scenario: Scenario) -> tuple[str, float, float]:
    """Path of the rate in the scenario, its value, and the highest value possible."""
    workload, duration_s = scenario.workload, scenario.run.duration_s
    if workload.mode != "online":
        raise InputError(
            "there is no arrival rate in a closed loop; --set workload.mode=online and "
            "workload.requests_per_s",
            file=scenario.file,
            where="workload.mode",
        )
    if workload.trace is None:
        if workload.mean_tokens_per_s is not None:
            path = "workload.mean_tokens_per_s"
            return path, workload.mean_tokens_per_s, _MAX_TOKENS_PER_S
        if isinstance(workload.requests_per_s, ConstantRate):
            return "workload.requests_per_s", workload.requests_per_s.per_s, _MAX_RATE
        return "workload.rate_scale", workload.rate_scale, _MAX_RATE
    path = _scale_path(scenario)
    if workload.trace_fills_run:
        return path, workload.rate_scale, _MAX_RATE
    end_s = workload.trace.requests[-1].arrival_s
    most = end_s / duration_s
    if workload.rate_scale > most:
        raise InputError(
            f"the trace ends after {end_s / workload.rate_scale:g} s at this rate, before the "
            f"run of {duration_s:g} s does; set {path} to {most:g} or less, or "
            "run.duration to less",
            file=scenario.file,
            where=path,
        )
    return path, workload.rate_scale, most


def _scale_path(scenario: Scenario) -> str:
    """The key that scales the rate of the trace: a contradiction of two keys would be an error."""
    section = scenario.document.get("workload")
    trace = section.get("trace") if isinstance(section, Mapping) else None
    has_own = isinstance(trace, Mapping) and trace.get("scale") is not None
    return "workload.trace.scale" if has_own else "workload.rate_scale"
