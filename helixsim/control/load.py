"""Load generators: a closed loop that keeps the cluster full, an open loop as users send.

A load generator draws lengths from the run's one random stream in the order in which requests are
created, which is part of what makes a run repeatable.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from helixsim.requests import SharedPrefix

if TYPE_CHECKING:
    from random import Random

LengthPair = tuple[int, int]
"""(prompt tokens, output tokens)."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is to come.

    Attributes
    ----------
    at_s
        When.
    prompt_tokens, output_tokens
        Its lengths.
    prefix
        What its prompt may share with others; None if nothing is known of it.
    priority
        Requests with a lower number go first, where a node schedules by priority.
    user_class
        Name of the class of users that it is from; empty without classes.
    region
        Where its user is: with several front ends, it enters at the nearest. None if it is not
        known.
    follows
        The number of the request whose user sends it, in order of creation; it enters where that
        did. None if it is the first of its user.
    front_end
        The number of the front end at which it enters (:mod:`helixsim.control.entrances`).
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: SharedPrefix | None = None
    priority: int = 0
    user_class: str = ""
    region: str | None = None
    follows: int | None = None
    front_end: int = 0


def nothing_shared(prompt_tokens: int) -> SharedPrefix | None:
    """What a prompt shares with others where nothing is known of it."""
    return None


class LoadGenerator(Protocol):
    """Says when the next requests come."""

    def opening(self) -> Iterator[Arrival]:
        """The requests that are there when the run begins, in order of creation."""
        ...

    def later(self) -> Iterator[Arrival]:
        """The requests that come at times of their own, in order of time."""
        ...

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """What comes because a prompt is through; `share` is the expected KV use.

        `index` is the number of its request, in order of creation.
        """
        ...

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """What comes because a request has ended; None for one that never began."""
        ...


class ClosedLoop:
    """Keeps the cluster as full as the expected KV use allows.

    Some requests come at the start; then one more after each prompt and each request that ends
    while the fullest layer's expected KV use is not above a mark. Where no such use is counted,
    a request that ends is replaced by a new one, so that their number stays the same.

    Parameters
    ----------
    draw
        Draws the next request, given when it comes.
    start_s, end_s
        When load generation starts and ends.
    num_requests
        How many come at the start.
    spacing_s
        Time between the first requests, and between an event and the request that it causes.
    high_water_mark
        The mark, 0 to 1.
    """

    def __init__(
        self,
        draw: Callable[[float], Arrival],
        *,
        start_s: float,
        end_s: float,
        num_requests: int,
        spacing_s: float,
        high_water_mark: float,
    ) -> None:
        self._draw = draw
        self._start_s = start_s
        self._end_s = end_s
        self._num_requests = num_requests
        self._spacing_s = spacing_s
        self._high_water_mark = high_water_mark

    def opening(self) -> Iterator[Arrival]:
        """The first requests, one spacing apart."""
        for number in range(self._num_requests):
            arrival = self._draw(self._start_s + self._spacing_s * number)
            if arrival.at_s <= self._end_s:
                yield arrival

    def later(self) -> Iterator[Arrival]:
        """No request comes without a cause."""
        return iter(())

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """One more, if KV use is counted and low enough."""
        return None if share is None else self._next(now, share)

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """One more, unless KV use is counted and too high."""
        return self._next(now, share)

    def _next(self, now: float, share: float | None) -> Arrival | None:
        at = now + self._spacing_s
        if at > self._end_s or (share is not None and share > self._high_water_mark):
            return None
        return self._draw(at)


class OpenLoop:
    """Lets requests come at times that do not depend on what becomes of them.

    All of them are drawn at once, before anything else uses the random stream, and kept as
    plain numbers until their time comes.
    """

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self._times = array("d")
        self._prompt_tokens = array("q")
        self._output_tokens = array("q")
        self._prefixes: dict[int, SharedPrefix] = {}
        self._priorities: dict[int, int] = {}
        self._classes: dict[int, str] = {}
        self._regions: dict[int, str] = {}
        for number, arrival in enumerate(arrivals):
            self._times.append(arrival.at_s)
            self._prompt_tokens.append(arrival.prompt_tokens)
            self._output_tokens.append(arrival.output_tokens)
            if arrival.prefix is not None:
                self._prefixes[number] = arrival.prefix
            if arrival.priority:
                self._priorities[number] = arrival.priority
            if arrival.user_class:
                self._classes[number] = arrival.user_class
            if arrival.region is not None:
                self._regions[number] = arrival.region

    def opening(self) -> Iterator[Arrival]:
        """No request is there when the run begins."""
        return iter(())

    def later(self) -> Iterator[Arrival]:
        """All requests, in order of time."""
        prefix_of, priority_of, class_of, region_of = (
            self._prefixes.get,
            self._priorities.get,
            self._classes.get,
            self._regions.get,
        )
        columns = zip(self._times, self._prompt_tokens, self._output_tokens, strict=True)
        for number, values in enumerate(columns):
            yield Arrival(
                *values,
                prefix_of(number),
                priority_of(number, 0),
                class_of(number, ""),
                region_of(number),
            )

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """An open loop does not react."""
        return None

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """An open loop does not react."""
        return None


def slot_arrivals(
    counts: Sequence[int],
    slot_s: float,
    requests_per_s: float,
    draw: Callable[[], LengthPair],
    rng: Random,
    *,
    start_s: float,
    duration_s: float,
) -> Iterator[Arrival]:
    """Arrivals drawn slot by slot from counts of a real trace, as the published runs do.

    Every slot takes the count of a slot drawn at random, scaled to the mean rate; what rounding
    leaves is carried over. Times are uniform within the slot. Lengths are drawn slot by slot
    too, from the same stream.

    Parameters
    ----------
    counts
        Arrivals in each slot of the trace.
    slot_s
        Length of a slot, in the trace and here.
    requests_per_s
        Mean rate to scale to.
    """
    scale = requests_per_s / (sum(counts) / len(counts) / slot_s)
    carried = 0.0
    number = 0
    while number * slot_s < duration_s:
        wanted = counts[rng.randint(0, len(counts) - 1)] * scale + carried
        num_requests = round(wanted)
        carried = wanted - num_requests
        offsets = sorted(rng.uniform(0, slot_s) for _ in range(num_requests))
        for offset in offsets:
            prompt_tokens, output_tokens = draw()
            if number * slot_s + offset <= duration_s:
                yield Arrival(start_s + number * slot_s + offset, prompt_tokens, output_tokens)
        number += 1
