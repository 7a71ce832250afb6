"""Fit what a request log can tell of an engine: all-reduces, host time, KV capacity.

A log has the latencies of whole requests. They depend on few costs strongly enough to be told
apart: the latency of an all-reduce, where a node has several GPUs; the host time of a step, where
steps are short; the KV capacity, where requests wait for blocks or are preempted. Each of them
without influence on the latencies keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

from helixsim.control.control_plane import placed_topology
from helixsim.errors import InputError
from helixsim.physics.engine import EngineCosts
from helixsim.recorded.log_replay import replay_log
from helixsim.recorded.request_log import RequestLog
from helixsim.scenario.resolved import Scenario

_GOLDEN = (sqrt(5) - 1) / 2
_ROUNDS = 2
_KINDS = ("ttft_s", "tpot_s", "e2e_s")
_STATISTICS = ("mean", "p50", "p90")
_LEAST_CHANGE = 1e-4
"""A cost that changes the loss by less from one end of its range to the other is not fitted."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One figure that is fitted.

    Attributes
    ----------
    field
        Of the engine.
    low, high
        Where it is sought.
    """

    field: str
    low: float
    high: float

    def engine(self, engine: EngineCosts, value: float) -> EngineCosts:
        """The engine with this value."""
        whole = self.field == "kv_tokens"
        return engine.model_copy(update={self.field: round(value) if whole else value})


@dataclass(frozen=True, slots=True)
class LogFit:
    """A fit.

    Attributes
    ----------
    engine
        With the fitted figures.
    fitted
        Field of the engine -> value; only figures that make a difference.
    loss, start_loss
        Mean absolute logarithm of simulated over recorded figures, at the end and before.
    evaluations
        Number of engines that were tried.
    errors
        For each log, errors as :class:`~helixsim.recorded.log_replay.LogReplayResult` has them.
    interrupted
        Whether Ctrl-C ended the search: then it is the best engine so far.
    """

    engine: EngineCosts
    fitted: dict[str, float]
    loss: float
    start_loss: float
    evaluations: int
    errors: tuple[dict[str, Any], ...]
    interrupted: bool = False


def knobs_of(scenario: Scenario) -> list[Knob]:
    """What may be fitted for a scenario, with the ranges."""
    topology, engine = placed_topology(scenario), scenario.engine
    knobs = []
    tables = [node.profile.operators for node in topology.nodes]
    if any(each is not None and each.tensor_parallel > 1 for each in tables):
        knobs.append(Knob("all_reduce_latency_s", 2e-6, 300e-6))
    knobs.append(Knob("step_host_s", 0.0, 0.05))
    capacity = min(node.capacity.kv_token_layers // node.num_layers for node in topology.nodes)
    known = engine.kv_tokens or capacity
    knobs.append(Knob("kv_tokens", 0.75 * known, 1.25 * known))
    return knobs


def fit_logs(
    logs: Sequence[tuple[RequestLog, Scenario]],
    *,
    evaluations: int = 60,
    on_progress: Callable[[int, float], None] = lambda tried, loss: None,
) -> LogFit:
    """Fit one engine to request logs; after Ctrl-C, the best one so far.

    Parameters
    ----------
    logs
        Each log with the scenario of its cluster; all scenarios have the same engine.
    evaluations
        Limit of the engines to try.
    on_progress
        Called with the number of engines tried, and the least loss so far.

    Raises
    ------
    InputError
        If the scenarios name different engines, or there is no log.
    """
    if not logs:
        raise InputError("give one request log at least")
    engine = logs[0][1].engine
    if any(scenario.engine != engine for _, scenario in logs):
        raise InputError("the scenarios of the logs name different engines; name one")
    search = _Search(logs, evaluations, on_progress)
    start, start_loss = engine, search.loss(engine)
    knobs = {knob.field: knob for _, scenario in logs for knob in knobs_of(scenario)}
    interrupted = False
    try:
        loss = start_loss
        for _ in range(_ROUNDS):
            for knob in knobs.values():
                found = search.along(knob, engine, loss)
                if found is not None:
                    value, loss = found
                    engine = knob.engine(engine, value)
        errors = search.errors(engine)
    except KeyboardInterrupt:
        interrupted = True
        loss, engine, errors = search.best
    fitted = {name: getattr(engine, name) for name in knobs}
    return LogFit(
        engine,
        {name: value for name, value in fitted.items() if value != getattr(start, name)},
        loss,
        start_loss,
        search.tried,
        errors,
        interrupted,
    )


class _Search:
    """Evaluates engines, as long as there are evaluations left."""

    def __init__(
        self,
        logs: Sequence[tuple[RequestLog, Scenario]],
        evaluations: int,
        on_progress: Callable[[int, float], None],
    ) -> None:
        self._logs = logs
        self._left = evaluations
        self._on_progress = on_progress
        self.tried = 0
        self.best: tuple[float, EngineCosts, tuple[dict[str, Any], ...]]
        """Loss, engine and errors; the first of several with the same loss."""

    def errors(self, engine: EngineCosts) -> tuple[dict[str, Any], ...]:
        """Errors with an engine, for each log.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, also if a simulation took it and ended early: its errors mean nothing.
        """
        found = []
        for each, scenario in self._logs:
            replayed = replay_log(each, replace(scenario, engine=engine))
            if replayed.interrupted:
                raise KeyboardInterrupt
            found.append(replayed.error)
        return tuple(found)

    def loss(self, engine: EngineCosts) -> float:
        """Mean absolute logarithm of simulated over recorded figures."""
        errors = self.errors(engine)
        logarithms = [
            abs(log(max(1 + error[kind][statistic], 1e-9)))
            for error in errors
            for kind in _KINDS
            for statistic in _STATISTICS
            if error[kind][statistic] is not None
        ]
        found = sum(logarithms) / len(logarithms) if logarithms else 0.0
        if not self.tried or found < self.best[0]:
            self.best = found, engine, errors
        self._left -= 1
        self.tried += 1
        self._on_progress(self.tried, self.best[0])
        return found

    def along(self, knob: Knob, engine: EngineCosts, loss: float) -> tuple[float, float] | None:
        """The best value of one figure by golden sections, and its loss; None if none is better."""
        low, high = knob.low, knob.high
        if self._left < 4:
            return None
        ends = [self.loss(knob.engine(engine, value)) for value in (low, high)]
        if abs(ends[0] - ends[1]) < _LEAST_CHANGE:
            return None
        points = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
        losses = [self.loss(knob.engine(engine, value)) for value in points]
        tried = list(zip([low, high, *points], [*ends, *losses], strict=True))
        while self._left > 0 and high - low > 0.02 * (knob.high - knob.low):
            if losses[0] <= losses[1]:
                high = points[1]
                points = [high - _GOLDEN * (high - low), points[0]]
                losses = [self.loss(knob.engine(engine, points[0])), losses[0]]
                tried.append((points[0], losses[0]))
            else:
                low = points[0]
                points = [points[1], low + _GOLDEN * (high - low)]
                losses = [losses[1], self.loss(knob.engine(engine, points[1]))]
                tried.append((points[1], losses[1]))
        value, least = min(tried, key=lambda pair: pair[1])
        return (value, least) if least < loss - _LEAST_CHANGE else None


def fit_text(found: LogFit, names: Sequence[str]) -> str:
    """What was fitted, and the errors of the replays."""
    lines = [
        f"{found.evaluations} engines tried, mean error {found.loss:.1%} (initially "
        f"{found.start_loss:.1%})"
    ]
    for field, value in found.fitted.items():
        shown = f"{value:.0f}" if field == "kv_tokens" else f"{value * 1e6:.4g} us"
        lines.append(f"  {EngineCosts.model_fields[field].alias or field}: {shown}")
    if not found.fitted:
        lines.append("  no cost was changed: none makes these latencies nearer")
    for name, error in zip(names, found.errors, strict=True):
        lines.append(
            f"{name}: "
            + ", ".join(
                f"{title} {error[kind]['mean']:+.1%}"
                for title, kind in zip(("TTFT", "TPOT", "end to end"), _KINDS, strict=True)
                if error[kind]["mean"] is not None
            )
        )
    return "\n".join(lines)
