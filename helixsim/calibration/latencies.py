"""How far an engine is from a recorded run: the start of the run, replayed whole.

Requests follow their own earlier passes, as they did in the cluster. To send each pass at its
recorded time instead says little about costs in a busy pipeline: there a pass waits for the steps
before it; a node that is too fast by 1 % drops that wait, and one that is too slow by 1 % lets it
grow from pass to pass.

A few groups of decodes circulate in a pipeline, and one group more or less moves a median by a
fifth. Therefore distributions are compared, not single passes. The intervals between the groups
that return show how long steps take, however many groups there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np

from helixsim.models.simulation import Simulation
from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import Topology
from helixsim.recorded.recording import RecordedRun
from helixsim.recorded.replay import RecordedSource, ReplaySettings
from helixsim.scenario.coordinator_alone import with_coordinator_alone
from helixsim.scenario.resolved import Scenario

_QUANTILES = np.arange(0.05, 1.0, 0.05)
_MISSING_LOSS = 10.0

_TOGETHER_S = 1e-3
"""Passes that return at most so long after another are of one step."""

_GROUP_SIZES = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33)
"""Least sizes of groups whose intervals are compared."""

_INTERVAL_WEIGHT = 2.0
_LEAST_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Observed:
    """What a coordinator sees of the passes that return in a window.

    Attributes
    ----------
    decodes, prompts
        Latencies.
    intervals
        For each range of :data:`_GROUP_SIZES`: times between the return of a group of this
        number of decodes and the return of the group before it.
    """

    decodes: np.ndarray
    prompts: np.ndarray
    intervals: list[np.ndarray]

    @classmethod
    def of(cls, latency_s: np.ndarray, end_s: np.ndarray, is_prompt: np.ndarray) -> Observed:
        """Sort out passes that have returned."""
        order = np.argsort(end_s, kind="stable")
        ends, prompts = end_s[order], is_prompt[order]
        first = np.flatnonzero(np.diff(ends, prepend=-np.inf) > _TOGETHER_S)
        sizes = np.diff(first, append=len(ends))
        with_prompt = np.add.reduceat(prompts, first) if len(first) else first
        intervals = np.diff(ends[first], prepend=np.nan)
        after_decodes = (with_prompt == 0) & (np.roll(with_prompt, 1) == 0)
        after_decodes[:1] = False
        classes = np.searchsorted(_GROUP_SIZES, sizes, side="right") - 1
        return cls(
            latency_s[~is_prompt],
            latency_s[is_prompt],
            [intervals[after_decodes & (classes == each)] for each in range(len(_GROUP_SIZES))],
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """The start of a recorded run, as used by the fit.

    Attributes
    ----------
    run, scenario
        The recorded run, and the scenario of its cluster.
    begin_s, end_s
        Passes that return in this window count, seconds since the start of sending.
    recorded
        What was recorded of these passes.
    """

    run: RecordedRun
    scenario: Scenario
    begin_s: float
    end_s: float
    recorded: Observed

    @property
    def topology(self) -> Topology:
        """Nodes and links of the cluster."""
        return Simulation(self.scenario).topology


def cut(run: RecordedRun, scenario: Scenario, slice_s: float, lead_s: float) -> Slice:
    """The first `slice_s` seconds of a run after `lead_s` seconds, in which its pipelines fill."""
    end_s = min(lead_s + slice_s, run.sending_ended_s)
    begin_s = min(lead_s, end_s / 2)
    passes = run.passes
    timed = replace(
        with_coordinator_alone(scenario),
        physics="calibrated",
        run=replace(scenario.run, warmup_s=begin_s, duration_s=end_s, drain=False),
    )
    inside = (passes.end_s >= begin_s) & (passes.end_s <= end_s)
    return Slice(
        run,
        timed,
        begin_s,
        end_s,
        Observed.of(passes.latency_s[inside], passes.end_s[inside], passes.is_prompt[inside]),
    )


def loss_of(part: Slice, engine: EngineCosts, seed: int = 0) -> float:
    """Distance of an engine from a part of a run: sum of absolute :func:`residuals`."""
    return float(np.abs(residuals(part, engine, seed)).sum())


def residuals(part: Slice, engine: EngineCosts, seed: int = 0) -> np.ndarray:
    """Differences of an engine from a part of a run, as weighted logarithms of ratios.

    Of decodes, and of prompts at half the weight: quantiles of latencies (together as much as their
    mean), the mean, the number. Of groups: the median interval before a group of each size, by the
    share of such groups.
    """
    ours, theirs = _replayed(part, engine, seed), part.recorded
    return np.concatenate(
        [
            _of_latencies(ours.decodes, theirs.decodes),
            0.5 * _of_latencies(ours.prompts, theirs.prompts),
            _INTERVAL_WEIGHT * _of_intervals(ours.intervals, theirs.intervals),
        ]
    )


def _replayed(part: Slice, engine: EngineCosts, seed: int) -> Observed:
    scenario = replace(part.scenario, engine=engine)
    simulation = Simulation(
        scenario,
        seed=seed,
        record_iterations=True,
        source=RecordedSource.of(part.run, scenario, ReplaySettings()),
    )
    passes = simulation.run().iterations
    ends = passes["end_s"].to_numpy() - simulation.start_s
    inside = (ends >= part.begin_s) & (ends <= part.end_s)
    latency = (passes["end_s"] - passes["start_s"]).to_numpy()
    is_prompt = (passes["phase"] == "prompt").to_numpy()
    return Observed.of(latency[inside], ends[inside], is_prompt[inside])


def _of_latencies(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    found = np.zeros(len(_QUANTILES) + 2)
    if not len(theirs):
        return found
    if not len(ours):
        found[-1] = _MISSING_LOSS
        return found
    ratios = np.quantile(ours, _QUANTILES) / np.quantile(theirs, _QUANTILES)
    found[:-2] = np.log(ratios) / len(_QUANTILES)
    found[-2:] = log(ours.mean() / theirs.mean()), log(len(ours) / len(theirs))
    return found


def _of_intervals(ours: list[np.ndarray], theirs: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(len(_GROUP_SIZES))
    groups = sum(len(each) for each in theirs)
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if min(len(mine), len(other)) >= _LEAST_GROUPS:
            ratio = float(np.median(mine)) / float(np.median(other))
            found[place] = log(ratio) * len(other) / groups
    return found
