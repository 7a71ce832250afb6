"""Whether the windows of some runs say anything of a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from helixsim.errors import InputError
from helixsim.metrics.summary import figures_of
from helixsim.studies.capacity_result import Probe
from helixsim.studies.runs import Outcome

LEAST_ARRIVALS = 5
"""Of fewer requests in the windows of all runs together nothing can be said."""
_LIVES = 5
"""A window should be this many times as long as a request's life."""
_SIGMAS = 2.0
"""Differences of this many standard deviations, or less, are chance."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of the runs of a search.

    Attributes
    ----------
    file
        The scenario, for messages.
    window_s, warmup_s
        Length of each window, and time before it.
    decodes
        Of a request, on average.
    keep_up
        Share of the arrivals that must finish.
    """

    file: Path
    window_s: float
    warmup_s: float
    decodes: float
    keep_up: float

    def check_tried(self, probe: Probe, tried: Mapping[float, Sequence[Outcome]]) -> None:
        """Refuse a rate of which the windows say nothing.

        A window shorter than a request's life sees requests arrive and none of them end, at any
        rate; and with hardly any arrivals, chance decides. A latency that is measured and too long
        stands.

        Parameters
        ----------
        probe
            The rate, as it was judged.
        tried
            All rates so far, with their runs.

        Raises
        ------
        InputError
            With the length that would be right.
        """
        life_s = self._life_s(tried)
        is_too_short = probe.meets and life_s > self.window_s
        is_late = any(" is " in miss for miss in probe.verdict.misses)
        if is_too_short or (tells_nothing(tried[probe.rate]) and not is_late):
            raise self._refusal(probe, tried[probe.rate], life_s)

    def check_missed(self, probe: Probe, tried: Mapping[float, Sequence[Outcome]]) -> None:
        """Refuse a rate that fails only because fewer requests finished than arrived, by chance.

        As many more arrive than finish as are in flight at the end and were not at the start. In
        equilibrium, both numbers are Poisson distributed with the same mean, by Little's law the
        rate times a request's life.

        Raises
        ------
        InputError
            With the length that would be right.
        """
        outcomes = tried[probe.rate]
        if not all("finished while" in miss for miss in probe.verdict.misses):
            return
        life_s = self._life_s(tried)
        arrived = sum(outcome.num_arrived for outcome in outcomes)
        finished = sum(outcome.num_finished for outcome in outcomes)
        in_flight = probe.requests_per_s * life_s * len(outcomes)
        if arrived - finished <= _SIGMAS * sqrt(2 * in_flight):
            raise self._refusal(probe, outcomes, life_s)

    def _life_s(self, tried: Mapping[float, Sequence[Outcome]]) -> float:
        """A request's life at the lowest rate that it can be estimated at; 0 if at none."""
        for rate in sorted(tried):
            found = [figures_of(outcome.summary or {}) for outcome in tried[rate]]
            lives = [
                max(
                    each.get("e2e_s.mean", 0.0),
                    each.get("ttft_s.mean", 0.0)
                    + self.decodes * each.get("decode_latency_s.mean", 0.0),
                )
                for each in found
            ]
            if life_s := max(lives, default=0.0):
                return life_s
        return 0.0

    def _refusal(self, probe: Probe, outcomes: Sequence[Outcome], life_s: float) -> InputError:
        arrived = sum(outcome.num_arrived for outcome in outcomes)
        finished = sum(outcome.num_finished for outcome in outcomes)
        life = f"a request takes some {_short(life_s)} s" if life_s else "no request got far"
        # So long that chance is less than what may be missing.
        rate, runs = max(probe.requests_per_s, 1e-9), len(outcomes)
        chance_s = _SIGMAS * sqrt(2 * life_s / (rate * runs)) / max(1 - self.keep_up, 0.01)
        warm_s = max(2 * life_s, self.warmup_s)
        long_s = warm_s + max(_LIVES * life_s, chance_s, 2 * self.window_s)
        return InputError(
            f"the window of {self.window_s:g} s after a warm-up of {self.warmup_s:g} s says too "
            f"little: at {probe.requests_per_s:.3g} requests/s, {arrived} arrive and {finished} "
            f"end in the windows of all runs, and {life}; set run.warmup to {_short(warm_s)} s or "
            f"more, and run.duration to {_short(long_s)} s or more",
            file=self.file,
            where="run.duration",
        )


def _short(seconds: float) -> str:
    """Two digits, without an exponent."""
    return f"{float(f'{seconds:.2g}'):g}"


def tells_nothing(outcomes: Sequence[Outcome]) -> bool:
    """Whether too few requests arrived in the windows of all runs."""
    return sum(outcome.num_arrived for outcome in outcomes) < LEAST_ARRIVALS
