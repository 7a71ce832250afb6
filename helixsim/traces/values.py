"""Workloads: requests in order of arrival, or lengths of requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, takewhile
from statistics import fmean
from typing import Protocol

from helixsim.errors import InputError
from helixsim.requests import SessionTurn, SharedPrefix, TraceRequest

MAX_REPEATED = 5_000_000
"""The most requests of a repeated trace."""


class LengthSource(Protocol):
    """A source of request lengths."""

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw the (prompt tokens, output tokens) of one request."""
        ...


@dataclass(frozen=True)
class Lengths:
    """The lengths of a list of requests, in the order of the list.

    Attributes
    ----------
    pairs
        (prompt tokens, output tokens) of each request; at least one, each at least 1.
    source
        Their source, for messages; not compared.
    notes
        What is to be known of them, as sentences; not compared.

    Raises
    ------
    InputError
        If there are no lengths, or a length is below 1.
    """

    pairs: tuple[tuple[int, int], ...]
    source: str = field(default="lengths", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"{self.source}: a list of lengths needs at least one request")
        if min(min(pair) for pair in self.pairs) < 1:
            raise InputError(f"{self.source}: prompt and output have at least 1 token each")

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def mean_prompt_tokens(self) -> float:
        """Mean length of the prompts, in tokens."""
        return fmean(prompt for prompt, _ in self.pairs)

    @cached_property
    def mean_output_tokens(self) -> float:
        """Mean length of the answers, in tokens."""
        return fmean(output for _, output in self.pairs)

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw the (prompt tokens, output tokens) of one request, each equally likely."""
        return rng.choice(self.pairs)

    def limited(
        self, *, max_prompt_tokens: float = math.inf, max_output_tokens: float = math.inf
    ) -> Lengths:
        """Leave out every request that is longer than a limit.

        The published runs exclude requests with more than 2,048 prompt tokens or 1,024 output
        tokens, instead of cutting them.
        """
        kept = (p for p in self.pairs if p[0] <= max_prompt_tokens and p[1] <= max_output_tokens)
        return Lengths(tuple(kept), self.source, self.notes)


@dataclass(frozen=True)
class Trace:
    """A workload: requests with arrival times and lengths.

    Attributes
    ----------
    requests
        In order of arrival, at least one. Times are seconds from the start of the trace, so the
        first request need not arrive at 0. Later turns of a session are in its first request.
    source
        Its source, for messages; not compared.
    num_skipped
        Number of requests in the file that were left out: failed ones, and ones without prompt
        tokens or output tokens; not compared.
    notes
        What is to be known of it, as sentences, such as how many requests were left out; not
        compared.

    Raises
    ------
    InputError
        If there are no requests, or they are not in order, or a time is negative or not finite.
    """

    requests: tuple[TraceRequest, ...]
    source: str = field(default="trace", compare=False)
    num_skipped: int = field(default=0, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError(f"{self.source}: a trace needs at least one request")
        times = [request.arrival_s for request in self.requests]
        in_order = all(earlier <= later for earlier, later in pairwise(times))
        if not (in_order and times[0] >= 0 and math.isfinite(times[-1])):
            raise InputError(
                f"{self.source}: arrivals must be finite, not negative, and in order of time"
            )

    def __len__(self) -> int:
        """Number of requests with times of their own."""
        return len(self.requests)

    @cached_property
    def num_turns(self) -> int:
        """Number of all requests, later turns of sessions included."""
        return sum(1 + len(request.later_turns) for request in self.requests)

    @property
    def span_s(self) -> float:
        """Time between the first arrival and the last, in seconds."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @cached_property
    def last_s(self) -> float:
        """Arrival of the last request, as if the answers before later turns took no time."""
        return max(
            request.arrival_s + sum(turn.delay_s for turn in request.later_turns)
            for request in self.requests
        )

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second: number of gaps between arrivals over their total time.

        Times the mean turns of a session. Infinite if all requests arrive at once.
        """
        turns_per_session = self.num_turns / len(self)
        return turns_per_session * (len(self) - 1) / self.span_s if self.span_s else math.inf

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of the requests, in order of arrival, each with its later turns."""
        turns = (turn for request in self.requests for turn in request.turns)
        pairs = tuple((turn.prompt_tokens, turn.output_tokens) for turn in turns)
        return Lengths(pairs, self.source, self.notes)

    def scaled(self, factor: float) -> Trace:
        """Scale the arrival rate by `factor`: every time is divided by `factor`.

        Delays of later turns stay: more load is more users, not faster ones.

        Raises
        ------
        InputError
            If the factor is not a finite number above 0.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"a rate is scaled by a finite factor above 0, not {factor!r}")
        return self._with(
            replace(request, arrival_s=request.arrival_s / factor) for request in self.requests
        )

    def scaled_to(self, rate_per_s: float) -> Trace:
        """Scale the gaps between arrivals to a mean rate of `rate_per_s`.

        Raises
        ------
        InputError
            If the rate is not a finite number above 0, or the trace has no rate of its own
            because all requests arrive at once.
        """
        if not self.span_s:
            raise InputError(f"{self.source}: all requests arrive at once: no rate to scale")
        return self.scaled(rate_per_s / self.rate_per_s)

    def between(self, start_s: float, end_s: float) -> Trace:
        """Keep arrivals from `start_s` up to, not including, `end_s`; `start_s` becomes 0."""
        return self._with(
            replace(request, arrival_s=request.arrival_s - start_s)
            for request in self.requests
            if start_s <= request.arrival_s < end_s
        )

    def limited(
        self, *, max_prompt_tokens: float = math.inf, max_output_tokens: float = math.inf
    ) -> Trace:
        """Leave out every request that is longer than a limit; see :meth:`Lengths.limited`.

        A session ends before its first turn that is longer.
        """

        def fits(turn: TraceRequest | SessionTurn) -> bool:
            return (
                turn.prompt_tokens <= max_prompt_tokens and turn.output_tokens <= max_output_tokens
            )

        def cut(request: TraceRequest) -> TraceRequest:
            if all(map(fits, request.later_turns)):
                return request
            return replace(request, later_turns=tuple(takewhile(fits, request.later_turns)))

        return self._with(cut(request) for request in self.requests if fits(request))

    def from_first(self) -> Trace:
        """Let times count from the first request, which arrives at 0."""
        first = self.requests[0].arrival_s
        return self.between(first, math.inf) if first else self

    def repeated(self, times: int, period_s: float) -> Trace:
        """Repeat the requests, each time `period_s` later.

        Repetitions are other users: their prompts share nothing with the prompts of the others.

        Parameters
        ----------
        times
            How often the requests come in all.
        period_s
            At least the time from 0 to the last request.

        Raises
        ------
        InputError
            If there are more than five million requests, or the repetitions overlap.
        """
        if self.num_turns * times > MAX_REPEATED:
            raise InputError(
                f"{self.source}: {times} times {self.num_turns} requests are more than "
                f"{MAX_REPEATED:,}"
            )
        return self._with(
            _of_repetition(request, number, period_s)
            for number in range(times)
            for request in self.requests
        )

    def noted(self, *notes: str) -> Trace:
        """The trace with further notes."""
        return replace(self, notes=self.notes + notes)

    def _with(self, requests: Iterable[TraceRequest]) -> Trace:
        return Trace(tuple(requests), self.source, self.num_skipped, self.notes)


def _of_repetition(request: TraceRequest, number: int, period_s: float) -> TraceRequest:
    if not number:
        return request
    later = tuple(
        replace(turn, prefix=_own_prefix(turn.prefix, number)) for turn in request.later_turns
    )
    return replace(
        request,
        arrival_s=request.arrival_s + number * period_s,
        prefix=_own_prefix(request.prefix, number),
        later_turns=later,
    )


def _own_prefix(prefix: SharedPrefix | None, number: int) -> SharedPrefix | None:
    if prefix is None:
        return None
    return replace(prefix, keys=tuple((number, key) for key in prefix.keys))
