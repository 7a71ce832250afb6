"""The workload of a scenario, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.distributions import Distribution, Times
from helixsim.traces.lengths import IndependentLengths, LengthModel
from helixsim.traces.patterns import ArrivalPattern
from helixsim.traces.rates import Rate
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
class EvenArrivals:
    """Arrivals with equal gaps."""


@dataclass(frozen=True, slots=True)
class CommonPrefixes:
    """Prompts begin with one of `prompts` texts of `tokens` tokens."""

    tokens: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations of several requests.

    Attributes
    ----------
    turns
        Number of requests of a conversation.
    think_time
        From the last token of an answer to the next request.
    system_prompt_tokens
        Tokens that stand before the first prompt, the same in all conversations.
    """

    turns: Distribution
    think_time: Times
    system_prompt_tokens: int = 0


Arrivals = SlotArrivals | PatternArrivals | PoissonArrivals | GammaArrivals | EvenArrivals
AnyLengths = Lengths | LengthModel | IndependentLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class UserClass:
    """Users whose requests are alike.

    Attributes
    ----------
    name
        Name of the class; empty if there is only one, without a name.
    share
        Share of all requests; None if the class has a rate of its own.
    requests_per_s
        Rate of its requests; None if it has a share of all.
    lengths
        Lengths of its prompts and answers; in conversations, of the new prompt of each turn.
    conversations
        Its requests are turns of conversations; None if each is by itself.
    shared_prefix
        What its prompts begin with; None if they share nothing.
    priority
        Requests with a lower number go first, where a node schedules by priority.
    region
        Region of the users; None if not told.
    """

    name: str = ""
    share: float | None = None
    requests_per_s: Rate | None = None
    lengths: AnyLengths
    conversations: Turns | None = None
    shared_prefix: CommonPrefixes | None = None
    priority: int = 0
    region: str | None = None


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
        Online without a trace: when requests arrive, at the rate that one of the next two says.
    trace
        Online: requests with their own times and lengths, limits applied, times as in the file
        (the run divides them by `rate_scale`).
    initial_requests
        Offline: number of requests that start the loop.
    spacing_s
        Offline: time between two of the initial requests, and from an end to the next request.
    mean_tokens_per_s
        Online without a trace: prompt and output tokens per second that are requested; None if
        `requests_per_s` or the classes say the rate.
    requests_per_s
        Online without a trace: rate of requests, of all turns of conversations.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request that throughput is estimated for.
    rate_scale
        Online with a trace or `requests_per_s`: factor on the rate of requests.
    trace_fills_run
        Whether the trace is repeated until it fills the run's duration at that rate.
    shared_prefix
        What prompts begin with; None if they share nothing, or as the trace has it.
    conversations
        Online without a trace: requests are turns of conversations; None if each is by itself.
    classes
        Classes of users, in order of their names; if there are any, they have the lengths,
        `shared_prefix` and `conversations` of their requests.
    warnings
        Doubts about the workload, as sentences; runs repeat them. Not compared.
    """

    mode: str
    lengths: AnyLengths | None = None
    arrivals: Arrivals | None = None
    trace: Trace | None = None
    initial_requests: int = 20
    spacing_s: float = 0.1
    mean_tokens_per_s: float | None = None
    requests_per_s: Rate | None = None
    mean_prompt_tokens: int = 750
    mean_output_tokens: int = 240
    rate_scale: float = 1.0
    trace_fills_run: bool = False
    shared_prefix: CommonPrefixes | None = None
    conversations: Turns | None = None
    classes: tuple[UserClass, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of users, or of the classes of a trace's requests, sorted."""
        if self.trace is not None:
            return tuple(sorted({r.user_class for r in self.trace.requests} - {""}))
        return tuple(users.name for users in self.classes)

    @property
    def groups(self) -> tuple[UserClass, ...]:
        """The classes of users; without classes, all users as one. Empty with a trace."""
        if self.classes or self.lengths is None:
            return self.classes
        return (
            UserClass(
                share=1.0,
                lengths=self.lengths,
                conversations=self.conversations,
                shared_prefix=self.shared_prefix,
            ),
        )
