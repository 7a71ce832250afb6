"""What the surrogate says of a placement."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from helixsim.planner.simulated.blocking import BlockingModel


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected performance of a placement.

    Attributes
    ----------
    decode_tokens_per_s
        Output tokens per second; 0 if no request can pass.
    decode_latency_s, prompt_latency_s
        Means in seconds; infinite if no request can pass.
    requests_in_flight
        Mean number of requests in flight.
    traits
        What corrections depend on.
    missed_s
        What requests that arrive but are not served add to mean latencies: each counts with the
        length of the run. 0 where load follows the throughput.
    """

    decode_tokens_per_s: float
    decode_latency_s: float
    prompt_latency_s: float
    requests_in_flight: float
    traits: Traits
    missed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Traits:
    """Traits of a placement that the surrogate's error depends on.

    Attributes
    ----------
    stages
        Mean number of nodes of a route.
    crossings
        Mean number of slow links of a route.
    most_in_flight
        Most requests that the KV caches hold.
    """

    stages: float
    crossings: float
    most_in_flight: float


NOTHING = Estimate(0.0, inf, inf, 0.0, Traits(0.0, 0.0, 0.0))
"""The estimate for a placement that no request can pass."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A placement as a queueing model, ready to be asked for latencies at a rate of requests.

    Attributes
    ----------
    model
        The queueing model.
    most_per_s
        Most requests per second.
    traits
        Traits of the placement.
    """

    model: BlockingModel
    most_per_s: float
    traits: Traits
