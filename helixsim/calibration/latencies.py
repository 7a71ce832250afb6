"""How far an engine is from a recorded run: the start of the run, replayed whole.

Requests follow their own earlier passes, as they did in the cluster. To send each pass at its
recorded time instead says little about costs in a busy pipeline: there a pass waits for the steps
before it, and a node that is too fast by 1 % drops that wait, while one that is too slow by 1 % lets
it grow from pass to pass.

A few groups of decodes circulate in a pipeline, and one group more or less moves a median by a
fifth. Therefore distributions are compared, not single passes.
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
from helixsim.scenario.resolved import Scenario

_QUANTILES = np.arange(0.05, 1.0, 0.05)
_MISSING_LOSS = 10.0


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
        Latencies of these passes: of decodes, of prompts.
    """

    run: RecordedRun
    scenario: Scenario
    begin_s: float
    end_s: float
    recorded: tuple[np.ndarray, np.ndarray]

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
        scenario,
        physics="calibrated",
        run=replace(scenario.run, warmup_s=begin_s, duration_s=end_s, drain=False),
    )
    inside = (passes.end_s >= begin_s) & (passes.end_s <= end_s)
    latency = passes.latency_s
    return Slice(
        run,
        timed,
        begin_s,
        end_s,
        (latency[inside & ~passes.is_prompt], latency[inside & passes.is_prompt]),
    )


def loss_of(part: Slice, engine: EngineCosts, seed: int = 0) -> float:
    """Distance of an engine from a part of a run; see :func:`.fit.fit_engine`."""
    loss = 0.0
    for weight, ours, theirs in zip(
        (1.0, 0.5), _latencies(part, engine, seed), part.recorded, strict=True
    ):
        if len(theirs):
            loss += weight * _distance(ours, theirs)
    return loss


def _latencies(part: Slice, engine: EngineCosts, seed: int) -> tuple[np.ndarray, np.ndarray]:
    scenario = replace(part.scenario, engine=engine)
    simulation = Simulation(
        scenario,
        seed=seed,
        record_iterations=True,
        source=RecordedSource.of(part.run, scenario, ReplaySettings()),
    )
    log_of_passes = simulation.run().iterations
    latency = (log_of_passes["end_s"] - log_of_passes["start_s"]).to_numpy()
    ends = log_of_passes["end_s"].to_numpy() - simulation.start_s
    inside = (ends >= part.begin_s) & (ends <= part.end_s)
    is_prompt = (log_of_passes["phase"] == "prompt").to_numpy()
    return latency[inside & ~is_prompt], latency[inside & is_prompt]


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of two samples: of their quantiles, means and sizes, as logarithms of ratios."""
    if not len(ours):
        return _MISSING_LOSS
    quantiles = np.log(np.quantile(ours, _QUANTILES) / np.quantile(theirs, _QUANTILES))
    means = log(float(ours.mean()) / float(theirs.mean()))
    return float(np.abs(quantiles).mean()) + abs(means) + abs(log(len(ours) / len(theirs)))
