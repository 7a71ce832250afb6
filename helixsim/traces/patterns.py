"""Arrivals as in the Azure traces, smooth (conversation) or in bursts (code), without the data.

The patterns follow one hour of each of the Azure traces. Both use the same model with different
parameters, a Poisson process with a varying rate: bursts and lulls alternate, and the rate
within bursts drifts and jitters (``tests/tools/fit_arrivals.py`` fits the parameters).
The published arrivals themselves are not included. Comparison with the counts in 1,200 slots of
3 s, at the rate of the trace (``tests/tools/trace_nearness.py`` measures it on 100 hours, +- is
the standard deviation from hour to hour; a test checks it):

.. code-block:: text

                              azure-conversation            azure-code
                              data    drawn             data    drawn
    mean count               13.88    14.00 +- 1.05     6.31     6.32 +- 0.89
    variance / mean           1.68     1.61 +- 0.22    26.84    27.61 +- 4.88
    the same in 30 s          5.65     5.22 +- 2.02    94.29   107.72 +- 23.08
    correlation, lag 1        0.25     0.25 +- 0.08     0.67     0.65 +- 0.04
    correlation, lag 5        0.19     0.23 +- 0.08     0.14     0.15 +- 0.06
    share of empty slots      0.00     0.00 +- 0.00     0.68     0.69 +- 0.04
    p95 of counts            22.00    22.40 +- 1.68    32.05    32.00 +- 3.48
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType

from helixsim.errors import InputError
from helixsim.traces.arrivals import SLOT_S, check_rate

_WARM_UP_SLOTS = 200


@dataclass(frozen=True)
class ArrivalPattern:
    """A Poisson process with a varying rate: bursts and lulls, with drift and jitter in bursts.

    All times are in slots of 3 s (:data:`~helixsim.traces.arrivals.SLOT_S`). Within a burst, the
    rate of a slot is the mean rate of bursts times exp(drift + jitter), both normal with a mean
    that preserves the mean rate; drift is correlated between slots, jitter is not.

    Attributes
    ----------
    name
        As in :data:`ARRIVAL_PATTERNS`.
    trace_rate_per_s
        Mean rate of the trace that it was fitted to.
    drift_sd, drift_slots
        Standard deviation of the drift, and the number of slots in which it decays to 1/e.
    jitter_sd
        Standard deviation of the jitter.
    burst_slots, burst_cv
        Mean length of a burst, at least 1, and the coefficient of variation of the part above 1.
    lull_slots, lull_cv
        The same for the time without arrivals between bursts; 0, the default, for no lulls.
    """

    name: str
    trace_rate_per_s: float
    drift_sd: float
    drift_slots: float
    jitter_sd: float
    burst_slots: float = 1.0
    burst_cv: float = 0.0
    lull_slots: float = 0.0
    lull_cv: float = 0.0

    def arrivals(
        self, rng: random.Random, rate_per_s: float | None = None, until_s: float = math.inf
    ) -> Iterator[float]:
        """Arrivals of this pattern, endless unless `until_s` is given.

        Parameters
        ----------
        rng
            Source of all randomness.
        rate_per_s
            Mean arrivals per second in the long run; by default the trace's. A higher rate means
            more users, not a faster clock: bursts get higher, not shorter. (To speed up the
            clock, scale the trace.) Over minutes the rate deviates from the mean as it does in
            the real trace; :meth:`Trace.scaled_to <helixsim.traces.values.Trace.scaled_to>`
            makes it exact.
        until_s
            No request arrives after this time; needed for very low rates, at which the search
            for the next arrival would take too long.

        Raises
        ------
        InputError
            If the rate is not above 0 and at most a million.
        """
        mean = self.trace_rate_per_s if rate_per_s is None else rate_per_s
        check_rate(mean)
        return self._arrivals(rng, mean, until_s)

    def _arrivals(self, rng: random.Random, mean: float, until_s: float) -> Iterator[float]:
        # A Poisson process with a varying rate is one of rate 1 in a time that runs at this rate.
        wait = rng.expovariate(1.0)
        for slot, relative in enumerate(self._relative_rates(rng)):
            rate, now, end = mean * relative, slot * SLOT_S, (slot + 1) * SLOT_S
            if now > until_s:
                return
            while wait < rate * (end - now):
                # Rounding must not carry an arrival past the start of the next slot.
                now = min(now + wait / rate, end)
                yield now
                wait = rng.expovariate(1.0)
            wait -= rate * (end - now)

    def _relative_rates(self, rng: random.Random) -> Iterator[float]:
        """Rates of consecutive slots, relative to the mean rate."""
        share = self.burst_slots / (self.burst_slots + self.lull_slots)
        memory = math.exp(-1 / self.drift_slots)
        fresh = self.drift_sd * math.sqrt(1 - memory**2)
        offset = (self.drift_sd**2 + self.jitter_sd**2) / 2
        drift = rng.gauss(0.0, self.drift_sd)
        for slot, busy in enumerate(self._busy(rng)):
            drift = memory * drift + rng.gauss(0.0, fresh)
            rate = math.exp(drift + rng.gauss(0.0, self.jitter_sd) - offset) / share if busy else 0
            # The first burst starts at slot 0. After the warm-up, the state is independent of
            # this start, and a trace starts anywhere in a burst or lull.
            if slot >= _WARM_UP_SLOTS:
                yield rate

    def _busy(self, rng: random.Random) -> Iterator[bool]:
        if self.lull_slots == 0:
            yield from repeat(True)
        while True:
            yield from repeat(True, _num_slots(self.burst_slots, self.burst_cv, rng))
            yield from repeat(False, _num_slots(self.lull_slots, self.lull_cv, rng))


ARRIVAL_PATTERNS: Mapping[str, ArrivalPattern] = MappingProxyType(
    {
        "azure-conversation": ArrivalPattern(
            name="azure-conversation",
            trace_rate_per_s=4.627,
            drift_sd=0.185,
            drift_slots=100.0,
            jitter_sd=0.115,
        ),
        "azure-code": ArrivalPattern(
            name="azure-code",
            trace_rate_per_s=2.104,
            drift_sd=0.673,
            drift_slots=4.5,
            jitter_sd=0.168,
            burst_slots=6.05,
            burst_cv=0.675,
            lull_slots=13.21,
            lull_cv=1.313,
        ),
    }
)
"""Name -> built-in pattern: azure-conversation is smooth, azure-code is bursty."""


def arrival_pattern(name: str) -> ArrivalPattern:
    """Give the built-in pattern of this name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in ARRIVAL_PATTERNS:
        raise InputError(f"no arrival pattern '{name}'; there are: {', '.join(ARRIVAL_PATTERNS)}")
    return ARRIVAL_PATTERNS[name]


def _num_slots(mean: float, cv: float, rng: random.Random) -> int:
    """Draw a length of at least 1 slot; rounding at random keeps the mean."""
    beyond = mean - 1
    if beyond <= 0 or cv == 0:
        return max(1, math.floor(mean + rng.random()))
    return 1 + math.floor(rng.gammavariate(1 / cv**2, beyond * cv**2) + rng.random())
