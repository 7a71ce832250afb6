"""The workload of a scenario, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.lengths import LengthModel
from helixsim.traces.patterns import ArrivalPattern
from helixsim.traces.values import Lengths, Trace

Mode = Literal["offline", "online"]


@dataclass(frozen=True, slots=True)
class SlotArrivals:
    """Arrivals as counted in slots of time: `counts` in each slot of `slot_s` seconds."""

    counts: tuple[int, ...]
    slot_s: float = SLOT_S


@dataclass(frozen=True, slots=True)
class PatternArrivals:
    """Arrivals that follow a built-in pattern."""

    pattern: ArrivalPattern


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Arrivals with exponential gaps."""


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Arrivals with gamma-distributed gaps; `cv` is their standard deviation over their mean."""

    cv: float


@dataclass(frozen=True, slots=True)
class CommonPrefixes:
    """Prompts begin with one of `prompts` texts of `tokens` tokens."""

    tokens: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations of `turns` requests, each `think_time_s` after the answer to the last."""

    turns: int
    think_time_s: float


Arrivals = SlotArrivals | PatternArrivals | PoissonArrivals | GammaArrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of users and their arrivals.

    Attributes
    ----------
    mode
        ``offline``: a closed loop, a request that ends makes room for another. ``online``:
        requests arrive at times of their own.
    lengths
        Source of the lengths of requests, limits applied. None with a trace.
    arrivals
        Online without a trace: when requests arrive; scaled to `mean_tokens_per_s`.
    trace
        Online: requests with their own times and lengths, limits applied, times as in the file
        (the run divides them by `rate_scale`).
    initial_requests
        Offline: number of requests that start the loop.
    spacing_s
        Offline: time between two of the initial requests, and from an end to the next request.
    mean_tokens_per_s
        Online without a trace: prompt and output tokens per second that are requested.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request that throughput is estimated for.
    rate_scale
        Online with a trace: factor on the rate of its requests.
    trace_fills_run
        Whether the trace is repeated until it fills the run's duration at that rate.
    shared_prefix
        What prompts begin with; None if they share nothing, or as the trace has it.
    conversations
        Online without a trace: requests are turns of conversations; None if each is by itself.
    """

    mode: str
    lengths: Lengths | LengthModel | None = None
    arrivals: Arrivals | None = None
    trace: Trace | None = None
    initial_requests: int = 20
    spacing_s: float = 0.1
    mean_tokens_per_s: float | None = None
    mean_prompt_tokens: int = 750
    mean_output_tokens: int = 240
    rate_scale: float = 1.0
    trace_fills_run: bool = False
    shared_prefix: CommonPrefixes | None = None
    conversations: Turns | None = None
