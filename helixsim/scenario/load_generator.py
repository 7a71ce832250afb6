"""Builds the load generator of a scenario's workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import takewhile
from random import Random

from helixsim.control.conversations import CommonBeginnings, Conversations, Start
from helixsim.control.load import (
    Arrival,
    ClosedLoop,
    LoadGenerator,
    OpenLoop,
    nothing_shared,
    slot_arrivals,
)
from helixsim.control.sessions import RecordedSession, Sessions
from helixsim.errors import ScenarioError
from helixsim.requests import SharedPrefix
from helixsim.scenario.resolved import RunSettings, Scenario
from helixsim.scenario.workload_values import (
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
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
    draw_prefix = nothing_shared
    if (shared := workload.shared_prefix) is not None:
        draw_prefix = CommonBeginnings(shared.prompts, shared.tokens, rng).draw
    if workload.trace is not None:
        trace = workload.trace.scaled(workload.rate_scale)
        arrivals = _with_prefixes(_replay(trace, start_s, run.duration_s), draw_prefix)
        if trace.num_turns == len(trace):
            return OpenLoop(arrivals)
        turns = (request.later_turns for request in trace.requests)
        # Requests beyond the end of the run have no arrival.
        sessions = map(RecordedSession, arrivals, turns)
        return Sessions(sessions, end_s=start_s + run.duration_s)
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
            draw_prefix=draw_prefix,
        )
    arrivals = _with_prefixes(_arrivals(workload, run, draw, rng, start_s), draw_prefix)
    if (talks := workload.conversations) is None:
        return OpenLoop(arrivals)
    later = range(talks.turns - 1)
    return Conversations(
        [Start(arrival, tuple(draw() for _ in later)) for arrival in arrivals],
        think_time_s=talks.think_time_s,
        end_s=start_s + run.duration_s,
    )


def _with_prefixes(
    arrivals: Iterable[Arrival], draw_prefix: Callable[[int], SharedPrefix | None]
) -> Iterable[Arrival]:
    """Draw what prompts begin with, where nothing is known of it.

    After all arrivals, so that these are the same with and without.
    """
    if draw_prefix is nothing_shared:
        return arrivals
    return [
        replace(each, prefix=draw_prefix(each.prompt_tokens)) if each.prefix is None else each
        for each in list(arrivals)
    ]


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
    if workload.conversations is not None:
        rate /= workload.conversations.turns
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
    tokens = _mean_drawn_tokens(workload)
    if workload.conversations is not None:
        # In the first turn it is one new prompt and one answer, in the second two of each, ...
        tokens *= (workload.conversations.turns + 1) / 2
    return tokens


def _mean_drawn_tokens(workload: Workload) -> float:
    lengths = workload.lengths
    if lengths is None:
        return float(workload.mean_prompt_tokens + workload.mean_output_tokens)
    if isinstance(lengths, LengthModel):
        lengths = lengths.draw(_MEAN_SAMPLE, Random(0))
    return sum(prompt + output for prompt, output in lengths.pairs) / len(lengths.pairs)
