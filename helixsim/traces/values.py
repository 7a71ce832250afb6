"""Workloads: requests in order of arrival, or lengths of requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import Protocol

from helixsim.errors import InputError
from helixsim.requests import TraceRequest


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

    Raises
    ------
    InputError
        If there are no lengths, or a length is below 1.
    """

    pairs: tuple[tuple[int, int], ...]
    source: str = field(default="lengths", compare=False)

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
        return Lengths(tuple(kept), self.source)


@dataclass(frozen=True)
class Trace:
    """A workload: requests with arrival times and lengths.

    Attributes
    ----------
    requests
        In order of arrival, at least one. Times are seconds from the start of the trace, so the
        first request need not arrive at 0.
    source
        Its source, for messages; not compared.
    num_skipped
        Number of failed requests in the file, which were left out; not compared.

    Raises
    ------
    InputError
        If there are no requests, or they are not in order, or a time is negative or not finite.
    """

    requests: tuple[TraceRequest, ...]
    source: str = field(default="trace", compare=False)
    num_skipped: int = field(default=0, compare=False)

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
        return len(self.requests)

    @property
    def span_s(self) -> float:
        """Time between the first arrival and the last, in seconds."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second: number of gaps between arrivals over their total time.

        Infinite if all requests arrive at once.
        """
        return (len(self) - 1) / self.span_s if self.span_s else math.inf

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of the requests, in order of arrival."""
        return Lengths(
            tuple((r.prompt_tokens, r.output_tokens) for r in self.requests), self.source
        )

    def scaled(self, factor: float) -> Trace:
        """Scale the arrival rate by `factor`: every time is divided by `factor`.

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
        """Leave out every request that is longer than a limit; see :meth:`Lengths.limited`."""
        return self._with(
            r
            for r in self.requests
            if r.prompt_tokens <= max_prompt_tokens and r.output_tokens <= max_output_tokens
        )

    def _with(self, requests: Iterable[TraceRequest]) -> Trace:
        return Trace(tuple(requests), self.source, self.num_skipped)
