"""The search for the cheapest set of machines: which sets are simulated, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import sqrt

from helixsim.studies.sizing.facts import MachineFacts
from helixsim.studies.sizing.machine_sets import CheapestSets, Counts, Kind, lacks
from helixsim.studies.sizing.offers import Fleet
from helixsim.studies.sizing.trials import KEEP_UP, Trial, Trials

_STEP = 1.2
"""Ratio of the expected rates of two sets, in search of one that meets the objectives."""
_MOST_STEPS = 10
_BISECTIONS = 4
_SOON = 3
_LEAST_EXPECTED = 0.85
"""Sets are not worth a simulation if less than this share of the expected rate is to be expected
that was enough for the answer so far."""
_MOST_LISTED = 5000


class SizeSearch:
    """Simulates sets of machines until none that is cheaper seems worth it.

    Attributes
    ----------
    bound
        Lists the sets that can serve the rate at all, as far as is proved, the cheapest first.
    tried
        All trials, in order.
    best
        The cheapest that meets the objectives; None so far.
    """

    def __init__(
        self,
        trials: Trials,
        fleet: Fleet,
        facts: Sequence[MachineFacts],
        *,
        max_each: int | None,
        survive: int,
    ) -> None:
        self._trials, self._survive = trials, survive
        self._names = [offer.label for offer in fleet.offers]
        self._kinds = [
            Kind(
                each.dollars_per_hour,
                (each.bound_requests_per_s, float(each.layers)),
                offer.owned,
                offer.owned + ((max_each or _MOST_EACH) if offer.may_add else 0),
            )
            for offer, each in zip(fleet.offers, facts, strict=True)
        ]
        self._needs = (KEEP_UP * trials.requests_per_s, float(fleet.llm.num_layers))
        self.bound = CheapestSets(self._kinds, self._needs, survive)
        self._rates: tuple[float, ...] = (0.0,) * len(self._kinds)
        self.tried: list[Trial] = []
        self.best: Trial | None = None

    def run(self, rates: Sequence[float]) -> None:
        """Search.

        Parameters
        ----------
        rates
            Requests per second that one machine of each kind is expected to serve.

        Raises
        ------
        OutOfTimeError
            If the time limit ends the search; :attr:`best` is the best so far.
        """
        self._rates = tuple(rates)
        self._answer_soon()
        enough = self._first_that_meets()
        if enough is not None:
            self._bisect(*enough)
        self._improve()

    # -- steps of the search

    def _answer_soon(self) -> None:
        """Try sets of as few machines as possible: these are simulated in the shortest time."""
        share = 1.0
        for _ in range(_SOON):
            counts = self._first(share, [1.0] * len(self._kinds))
            if counts is None or self._try(counts).meets:
                return
            share *= _STEP

    def _first_that_meets(self) -> tuple[float, float] | None:
        """Try the cheapest set that should be enough, and if it fails expect less of its machines.

        Then try ever smaller sets.

        Returns
        -------
        tuple or None
            Shares of the rate, as expected: a share that was not enough and one that was. None if
            no set meets the objectives.
        """
        share, too_little = 1.0, 0.0
        for _ in range(_MOST_STEPS):
            counts = self._cheapest(share)
            if counts is None:
                return self._all_machines(too_little)
            if not self._is_cheaper(counts) or self._try(counts).meets:
                break
            self._expect_less(counts)
            too_little = self._share(counts)
        else:
            return None
        while not too_little:
            less = self._cheapest(share / _STEP)
            if less is None or self.best is None or not self._is_cheaper(less):
                too_little = share / _STEP
            elif self._try(less).meets:
                share /= _STEP
            else:
                too_little = share / _STEP
        return too_little, share

    def _expect_less(self, counts: Counts) -> None:
        """After a set has failed: expect less of the kind of which it expected most."""
        rates = list(self._rates)
        kind = max(range(len(rates)), key=lambda index: rates[index] * counts[index])
        rates[kind] /= _STEP
        self._rates = tuple(rates)

    def _all_machines(self, too_little: float) -> tuple[float, float] | None:
        """Try all machines that there may be, where their number is limited.

        Returns
        -------
        tuple or None
            As :meth:`_first_that_meets`.
        """
        counts = tuple(kind.most for kind in self._kinds)
        limited = all(kind.most - kind.least < _MOST_EACH for kind in self._kinds)
        if limited and not lacks(self._kinds, counts, self._needs, self._survive):
            trial = self._known(counts) or self._try(counts)
            if trial.meets:
                return too_little, max(self._share(counts), too_little)
        if not self.tried and (first := next(iter(self.bound), None)) is not None:
            self._try(first[1])  # nothing is expected of any set: see how far it is
        return None

    def _bisect(self, too_little: float, enough: float) -> None:
        for _ in range(_BISECTIONS):
            share = sqrt(max(too_little, enough / 2) * enough)
            counts = self._cheapest(share)
            if counts is None:
                return
            trial = self._known(counts)
            if trial is None and self._is_cheaper(counts):
                trial = self._try(counts)
            if trial is not None and not trial.meets:
                too_little = share
            else:
                enough = share

    def _improve(self) -> None:
        """Try cheaper sets, the most promising first."""
        while self.best is not None:
            enough = min(self._share(trial.counts) for trial in self.tried if trial.meets)
            left = [
                counts
                for counts in self.cheaper_sets()
                if not self._holds_no_more_than_failed(counts)
                and self._share(counts) >= _LEAST_EXPECTED * min(enough, 1.0)
            ]
            if not left:
                return
            self._try(max(left, key=self._share))

    def cheaper_sets(self) -> list[Counts]:
        """The sets that the bound allows and that cost less than the best, not simulated so far.

        At most 5,000.
        """
        assert self.best is not None
        found = []
        search = CheapestSets(self._kinds, self._needs, self._survive)
        for cost, counts in islice(search, _MOST_LISTED):
            if cost >= self.best.dollars_per_hour:
                break
            if self._known(counts) is None:
                found.append(counts)
        return found

    # -- sets

    def _try(self, counts: Counts) -> Trial:
        known = self._known(counts)
        if known is not None:
            return known
        text = ", ".join(f"{n} x {name}" for name, n in zip(self._names, counts, strict=True) if n)
        dollars = self.bound.cost(counts)
        trial = self._trials.try_set(counts, dollars, text, survive=bool(self._survive))
        self.tried.append(trial)
        if trial.meets and (self.best is None or dollars < self.best.dollars_per_hour):
            self.best = trial
        return trial

    def _known(self, counts: Counts) -> Trial | None:
        return next((trial for trial in self.tried if trial.counts == counts), None)

    def _is_cheaper(self, counts: Counts) -> bool:
        return self.best is None or self.bound.cost(counts) < self.best.dollars_per_hour

    def _holds_no_more_than_failed(self, counts: Counts) -> bool:
        """Whether a set that failed has all of these machines, and perhaps more.

        More machines nearly always serve more; the rule for the layout does not guarantee it.
        """
        return any(
            all(n <= most for n, most in zip(counts, trial.counts, strict=True))
            for trial in self.tried
            if not trial.meets
        )

    def _share(self, counts: Counts) -> float:
        """The expected rate of a set over the rate that is asked for, after the worst loss."""
        rates = [rate * n for rate, n in zip(self._rates, counts, strict=True)]
        lost = max(
            (rate for rate, n in zip(self._rates, counts, strict=True) if n and self._survive),
            default=0.0,
        )
        return (sum(rates) - lost) / self._trials.requests_per_s

    def _cheapest(self, share: float) -> Counts | None:
        """The cheapest set that the bound allows and that is expected to serve a share of the rate.

        None if there is no such set.
        """
        return self._first(share, [kind.price for kind in self._kinds])

    def _first(self, share: float, prices: Sequence[float]) -> Counts | None:
        """As :meth:`_cheapest`, at other prices."""
        kinds = [
            Kind(price, (*kind.amounts, rate), kind.least, kind.most)
            for kind, rate, price in zip(self._kinds, self._rates, prices, strict=True)
        ]
        needs = (*self._needs, share * self._trials.requests_per_s)
        return next((counts for _, counts in CheapestSets(kinds, needs, self._survive)), None)


_MOST_EACH = 10_000
