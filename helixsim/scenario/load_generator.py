"""Builds the load generator of a scenario's workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from random import Random

from helixsim.control.conversations import CommonBeginnings, Conversations
from helixsim.control.load import (
    Arrival,
    ClosedLoop,
    LengthPair,
    LoadGenerator,
    OpenLoop,
    nothing_shared,
    slot_arrivals,
)
from helixsim.control.sessions import RecordedSession, Sessions
from helixsim.errors import ScenarioError
from helixsim.requests import SharedPrefix
from helixsim.scenario.arrival_times import arrival_times, constant_rate, rate_of
from helixsim.scenario.class_load import class_starts, conversation_start, drawn_class_requests
from helixsim.scenario.resolved import RunSettings, Scenario
from helixsim.scenario.workload_values import AnyLengths, SlotArrivals, Workload
from helixsim.traces.values import Trace


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
    if workload.mode == "offline":
        return ClosedLoop(
            _drawn_requests(workload, rng, run.duration_s, draw_prefix),
            start_s=start_s,
            end_s=start_s + run.duration_s,
            num_requests=workload.initial_requests,
            spacing_s=workload.spacing_s,
            high_water_mark=scenario.scheduler.feed_high_water_mark,
        )
    if workload.classes:
        return _open_loop_of_classes(workload, rng, start_s, run.duration_s)
    lengths = _lengths_of(workload)

    def draw() -> LengthPair:
        return lengths.sample(rng)

    arrivals = _with_prefixes(_arrivals(workload, run, draw, rng, start_s), draw_prefix)
    if (talks := workload.conversations) is None:
        return OpenLoop(arrivals)
    starts = (conversation_start(arrival, talks, draw, rng) for arrival in arrivals)
    return Conversations(starts, end_s=start_s + run.duration_s)


def _drawn_requests(
    workload: Workload,
    rng: Random,
    duration_s: float,
    draw_prefix: Callable[[int], SharedPrefix | None],
) -> Callable[[float], Arrival]:
    """Draws the requests of a closed loop, given when they come."""
    if workload.classes:
        return drawn_class_requests(workload, rng, duration_s)
    lengths = _lengths_of(workload)

    def draw(at_s: float) -> Arrival:
        prompt_tokens, output_tokens = lengths.sample(rng)
        return Arrival(at_s, prompt_tokens, output_tokens, draw_prefix(prompt_tokens))

    return draw


def _open_loop_of_classes(
    workload: Workload, rng: Random, start_s: float, duration_s: float
) -> LoadGenerator:
    starts = class_starts(workload, rng, start_s=start_s, duration_s=duration_s)
    if any(users.conversations is not None for users in workload.classes):
        return Conversations(starts, end_s=start_s + duration_s)
    return OpenLoop(start.arrival for start in starts)


def _lengths_of(workload: Workload) -> AnyLengths:
    if workload.lengths is None:
        raise ScenarioError(
            "needs the lengths of requests: a built-in set or a file", where="workload.lengths"
        )
    return workload.lengths


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
            request.user_class,
            request.region,
        )


def _arrivals(
    workload: Workload,
    run: RunSettings,
    draw: Callable[[], LengthPair],
    rng: Random,
    start_s: float,
) -> Iterator[Arrival]:
    arrivals, duration_s = workload.arrivals, run.duration_s
    rate, talks = rate_of(workload, duration_s), workload.conversations
    if arrivals is None:
        raise ScenarioError("online needs arrivals, or a trace", where="workload")
    turns = 1.0 if talks is None else talks.turns.mean
    if isinstance(arrivals, SlotArrivals):
        return slot_arrivals(
            arrivals.counts,
            arrivals.slot_s,
            constant_rate(rate) * workload.rate_scale / turns,
            draw,
            rng,
            start_s=start_s,
            duration_s=duration_s,
        )
    times = arrival_times(
        arrivals, rate, rng, duration_s, requests_per_start=turns, scale=workload.rate_scale
    )
    return (Arrival(start_s + at, *draw()) for at in times)
