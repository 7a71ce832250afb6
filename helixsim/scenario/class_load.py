"""The requests of several classes of users, each drawn from random streams of its own.

So the requests of one class stay the same when another class changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import accumulate
from random import Random

from helixsim.control.conversations import (
    CommonBeginnings,
    NewTurn,
    Start,
    system_prompt,
)
from helixsim.control.load import Arrival, LengthPair
from helixsim.errors import ScenarioError
from helixsim.scenario.arrival_times import arrival_times, rate_of
from helixsim.scenario.offered_load import class_weights
from helixsim.scenario.workload_values import Arrivals, Turns, UserClass, Workload

_SEED_BITS = 64


def conversation_start(
    arrival: Arrival, talks: Turns, draw: Callable[[], LengthPair], rng: Random
) -> Start:
    """A conversation whose first request is given without the system prompt.

    Parameters
    ----------
    arrival
        The first request.
    talks
        The conversations.
    draw
        Draws the tokens that a later turn adds.
    rng
        Source of the number of turns and of think times.
    """
    if talks.system_prompt_tokens:
        arrival = Arrival(
            arrival.at_s,
            talks.system_prompt_tokens + arrival.prompt_tokens,
            arrival.output_tokens,
            system_prompt(talks.system_prompt_tokens, arrival.user_class),
            arrival.priority,
            arrival.user_class,
            arrival.region,
        )
    later = range(talks.turns.sample(rng) - 1)
    return Start(arrival, tuple(NewTurn(talks.think_time.sample(rng), *draw()) for _ in later))


class _Users:
    """Draws the requests of one class."""

    def __init__(self, users: UserClass, rng: Random) -> None:
        self._users = users
        self._rng = rng
        shared = users.shared_prefix
        self._beginnings = (
            None
            if shared is None
            else CommonBeginnings(shared.prompts, shared.tokens, rng, users.name)
        )

    def _draw(self) -> LengthPair:
        return self._users.lengths.sample(self._rng)

    def arrival(self, at_s: float) -> Arrival:
        """A request by itself, or the first of a conversation without the system prompt."""
        prompt_tokens, output_tokens = self._draw()
        prefix = None if self._beginnings is None else self._beginnings.draw(prompt_tokens)
        users = self._users
        return Arrival(
            at_s, prompt_tokens, output_tokens, prefix, users.priority, users.name, users.region
        )

    def start(self, at_s: float) -> Start:
        """A request by itself, or a conversation."""
        arrival, talks = self.arrival(at_s), self._users.conversations
        if talks is None:
            return Start(arrival)
        return conversation_start(arrival, talks, self._draw, self._rng)


class _Mix:
    """Draws one of several classes, by weights."""

    def __init__(self, weights: list[float], rng: Random) -> None:
        self._ends = list(accumulate(weights))
        self._rng = rng

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return self._ends[-1]

    def draw(self) -> int:
        """The number of a class."""
        return min(bisect_right(self._ends, self._rng.random() * self.total), len(self._ends) - 1)


def _own_stream(rng: Random) -> Random:
    return Random(rng.getrandbits(_SEED_BITS))


def class_starts(
    workload: Workload, rng: Random, *, start_s: float, duration_s: float
) -> Iterator[Start]:
    """The requests, or first requests of conversations, of all classes in order of time.

    Parameters
    ----------
    workload
        Online, with classes, each with a share of all requests, or each with a rate.
    rng
        The run's random stream, from which each class gets its own.
    start_s, duration_s
        Start and length of load generation.
    """
    users = [_Users(each, _own_stream(rng)) for each in workload.classes]
    shared = workload.classes[0].requests_per_s is None
    times = _shared_times if shared else _own_times
    for at_s, number in times(workload, rng, duration_s):
        yield users[number].start(start_s + at_s)


def _turns(users: UserClass) -> float:
    return 1.0 if users.conversations is None else users.conversations.turns.mean


def _shared_times(
    workload: Workload, rng: Random, duration_s: float
) -> Iterator[tuple[float, int]]:
    """Arrivals of the whole workload, each of a class drawn by its share of requests."""
    weights = [(users.share or 0.0) / _turns(users) for users in workload.classes]
    mix = _Mix(weights, _own_stream(rng))
    times = arrival_times(
        _arrivals_of(workload),
        rate_of(workload, duration_s),
        rng,
        duration_s,
        requests_per_start=1 / mix.total,
        scale=workload.rate_scale,
    )
    return ((at_s, mix.draw()) for at_s in times)


def _own_times(workload: Workload, rng: Random, duration_s: float) -> Iterator[tuple[float, int]]:
    """Arrivals of each class at its own rate."""

    def times(number: int, users: UserClass) -> Iterator[tuple[float, int]]:
        assert users.requests_per_s is not None
        found = arrival_times(
            _arrivals_of(workload),
            users.requests_per_s,
            _own_stream(rng),
            duration_s,
            requests_per_start=_turns(users),
            scale=workload.rate_scale,
        )
        return ((at_s, number) for at_s in found)

    return merge(*(times(number, users) for number, users in enumerate(workload.classes)))


def _arrivals_of(workload: Workload) -> Arrivals:
    if workload.arrivals is None:
        raise ScenarioError("online needs arrivals, or a trace", where="workload")
    return workload.arrivals


def drawn_class_requests(
    workload: Workload, rng: Random, duration_s: float
) -> Callable[[float], Arrival]:
    """Draws requests of a closed loop: a class by its share, then a request of it."""
    users = [_Users(each, _own_stream(rng)) for each in workload.classes]
    mix = _Mix(class_weights(workload, duration_s), _own_stream(rng))

    def draw(at_s: float) -> Arrival:
        return users[mix.draw()].arrival(at_s)

    return draw
