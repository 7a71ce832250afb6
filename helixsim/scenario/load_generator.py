"""Builds the load generator of a scenario's workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from random import Random

from helixsim.control.load import Arrival, ClosedLoop, LoadGenerator, OpenLoop, slot_arrivals
from helixsim.errors import ScenarioError
from helixsim.scenario.resolved import (
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
    RunSettings,
    Scenario,
    SlotArrivals,
    Workload,
)
from helixsim.traces.arrivals import gamma, poisson
from helixsim.traces.lengths import LengthModel
from helixsim.traces.values import Trace

_MEAN_SAMPLE = 20_000


def build_load_generator(scenario: Scenario, rng: Random, start_s: float) -> LoadGenerator:
    """Build the load generator of a run.

    Parameters
    ----------
    scenario
        The scenario, with its workload.
    rng
        The run's random stream, from which lengths and arrivals are drawn.
    start_s
        Start of load generation.

    Raises
    ------
    ScenarioError
        If the workload lacks something that its mode needs.
    """
    workload, run = scenario.workload, scenario.run
    if workload.trace is not None:
        trace = workload.trace.scaled(workload.rate_scale)
        return OpenLoop(_replay(trace, start_s, run.duration_s))
    lengths = workload.lengths
    if lengths is None:
        raise ScenarioError(
            "needs the lengths of requests: a built-in set or a file", where="workload.lengths"
        )

    def draw() -> tuple[int, int]:
        return lengths.sample(rng)

    if workload.mode == "offline":
        return ClosedLoop(
            draw,
            start_s=start_s,
            end_s=start_s + run.duration_s,
            num_requests=workload.initial_requests,
            spacing_s=workload.spacing_s,
            high_water_mark=scenario.scheduler.feed_high_water_mark,
        )
    return OpenLoop(_arrivals(workload, run, draw, rng, start_s))


def _replay(trace: Trace, start_s: float, duration_s: float) -> Iterator[Arrival]:
    for request in trace.requests:
        if request.arrival_s > duration_s:
            return
        yield Arrival(
            start_s + request.arrival_s,
            request.prompt_tokens,
            request.output_tokens,
            request.prefix,
            request.priority,
        )


def _arrivals(
    workload: Workload,
    run: RunSettings,
    draw: Callable[[], tuple[int, int]],
    rng: Random,
    start_s: float,
) -> Iterator[Arrival]:
    arrivals = workload.arrivals
    if arrivals is None or workload.mean_tokens_per_s is None:
        raise ScenarioError(
            "online needs arrivals and mean_tokens_per_s, or a trace", where="workload"
        )
    rate = workload.mean_tokens_per_s / mean_request_tokens(workload)
    if isinstance(arrivals, SlotArrivals):
        return slot_arrivals(
            arrivals.counts,
            arrivals.slot_s,
            rate,
            draw,
            rng,
            start_s=start_s,
            duration_s=run.duration_s,
        )
    match arrivals:
        case PatternArrivals(pattern):
            times = pattern.arrivals(rng, rate, run.duration_s)
        case GammaArrivals(cv):
            times = gamma(rate, cv, rng)
        case PoissonArrivals():
            times = poisson(rate, rng)
    return (
        Arrival(start_s + at, *draw()) for at in takewhile(lambda at: at <= run.duration_s, times)
    )


def mean_request_tokens(workload: Workload) -> float:
    """Mean number of prompt plus output tokens of a workload's requests."""
    lengths = workload.lengths
    if lengths is None:
        return float(workload.mean_prompt_tokens + workload.mean_output_tokens)
    if isinstance(lengths, LengthModel):
        lengths = lengths.draw(_MEAN_SAMPLE, Random(0))
    return sum(prompt + output for prompt, output in lengths.pairs) / len(lengths.pairs)
