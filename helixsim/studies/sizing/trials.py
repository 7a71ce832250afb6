"""Simulations of sets of machines at a rate, short ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import ceil
from time import monotonic

from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Limit
from helixsim.planner.place import place
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.backends import Backend, outcomes
from helixsim.studies.objectives import Verdict, judge
from helixsim.studies.rate_key import RateKey, with_value
from helixsim.studies.runs import Outcome, StudyRun
from helixsim.studies.sizing.machine_sets import Counts
from helixsim.studies.sizing.offers import Fleet

KEEP_UP = 0.95
"""Share of the requests arriving in the windows that must finish in them."""
_SHORT_SHARE = 0.25
"""Length of the window of a short run over that of a full run."""
_SHORT_KEEP_UP = 0.8
_CLEARLY = 0.9
"""A short run fails if a figure is further from its limit than by this ratio."""


class OutOfTimeError(Exception):
    """The next simulation would end after the time limit."""


@dataclass(frozen=True)
class Trial:
    """One set of machines that was simulated.

    Attributes
    ----------
    counts
        Machines of each offer.
    dollars_per_hour
        Their price.
    is_full
        Whether there were full runs with all seeds; a short run with one seed was enough for sets
        that fail clearly.
    verdict
        Figures, and the objectives that are missed.
    by_seed
        Seed -> the figures that have limits.
    lost
        The machine without which the figures are; empty if all are there.
    """

    counts: Counts
    dollars_per_hour: float
    is_full: bool
    verdict: Verdict
    by_seed: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    lost: str = ""

    @property
    def meets(self) -> bool:
        """Whether all objectives are met."""
        return self.is_full and not self.verdict.misses


@dataclass
class Trials:
    """Simulates sets of machines.

    Attributes
    ----------
    fleet, objectives
        Makes the scenarios; what each must meet.
    key, requests_per_s
        The key of the rate, and the rate.
    seeds
        Seeds of full runs; short runs have the first.
    backend, jobs
        As of :func:`helixsim.sweep`.
    deadline_s
        Time of :func:`time.monotonic` by which runs must end; they are not started if they would
        probably end later.
    on_step
        Called with a text before each simulation.
    """

    fleet: Fleet
    objectives: tuple[Limit, ...]
    key: RateKey
    requests_per_s: float
    seeds: tuple[int, ...]
    backend: Backend
    jobs: int
    deadline_s: float
    on_step: Callable[[str], None]

    def sized(self, counts: Counts) -> Scenario:
        """The scenario of a set at the rate, with a placement.

        Raises
        ------
        HelixError
            If the machines cannot hold the LLM, or are not connected.
        """
        return place(self._at_rate(self.fleet.scenario(counts), self.requests_per_s))

    def try_set(self, counts: Counts, dollars: float, text: str, *, survive: bool) -> Trial:
        """Simulate a set: a short run, then full runs, then without one machine of each kind.

        Raises
        ------
        OutOfTimeError
            If there is no time for it.
        """
        try:
            whole = self.sized(counts)
        except HelixError as error:
            return Trial(counts, dollars, True, Verdict({}, 0.0, (str(error),)))
        trial = self._race(whole, Trial(counts, dollars, False, _NOTHING), text)
        if not (trial.meets and survive):
            return trial
        for lost, rest in self._losses(whole):
            without = self._race(
                rest, replace(trial, lost=lost, is_full=False), f"{text} without {lost}"
            )
            if not without.meets:
                return without
        return trial

    def _race(self, scenario: Scenario, trial: Trial, text: str) -> Trial:
        self._check_time(0.0)
        began_s = monotonic()
        self.on_step(f"{text}: short run")
        verdict, by_seed = self._judge([self._short(scenario)], self.seeds[:1], _SHORT_KEEP_UP)
        if self._fails_clearly(verdict):
            return replace(trial, verdict=verdict, by_seed=by_seed)
        rounds = ceil(len(self.seeds) / self.jobs)
        self._check_time((monotonic() - began_s) / _SHORT_SHARE * rounds)
        self.on_step(f"{text}: full runs")
        verdict, by_seed = self._judge([scenario], self.seeds, KEEP_UP)
        return replace(trial, is_full=True, verdict=verdict, by_seed=by_seed)

    def _fails_clearly(self, verdict: Verdict) -> bool:
        if not verdict.figures:  # the run failed
            return bool(verdict.misses)
        return any(
            limit.figure in verdict.figures and limit.kept_share(verdict.figures) < _CLEARLY
            for limit in self.objectives
        )

    def _judge(
        self, scenarios: Sequence[Scenario], seeds: Sequence[int], keep_up: float
    ) -> tuple[Verdict, dict[int, dict[str, float]]]:
        found = self._carry_out([(scenario, seed) for scenario in scenarios for seed in seeds])
        errors = tuple(dict.fromkeys(each.error for each in found if each.error is not None))
        if errors:
            return Verdict({}, 0.0, errors), {}
        by_seed = {}
        for seed, outcome in zip(seeds, found, strict=True):
            figures = judge([outcome], self.objectives, keep_up).figures
            by_seed[seed] = {
                limit.figure: figures[limit.figure]
                for limit in self.objectives
                if limit.figure in figures
            }
        return judge(found, self.objectives, keep_up), by_seed

    def _losses(self, whole: Scenario) -> Iterator[tuple[str, Scenario]]:
        """The scenario without one machine, for one of each offer with the same layers."""
        assert whole.placement is not None
        seen = set()
        kinds = self.fleet.kinds_of_nodes(whole)
        for node, kind in zip(whole.cluster, kinds, strict=True):
            layers = whole.placement.layers.get(node.name)
            if layers is None or (kind, layers) in seen:
                continue
            seen.add((kind, layers))
            yield node.name, whole.with_(placement=_without(whole.placement, node.name))

    # -- machines by themselves

    def sustain(self, cases: Sequence[tuple[Scenario, float]]) -> list[bool]:
        """Whether scenarios without a placement meet the objectives at rates, by short runs."""
        self._check_time(0.0)
        runs: list[tuple[Scenario, int] | None] = []
        for scenario, requests_per_s in cases:
            try:
                placed = place(self._at_rate(scenario, requests_per_s))
            except HelixError:
                runs.append(None)
            else:
                runs.append((self._short(placed), self.seeds[0]))
        found = iter(self._carry_out([run for run in runs if run is not None]))
        return [run is not None and self._is_sustained(next(found)) for run in runs]

    def _is_sustained(self, outcome: Outcome) -> bool:
        if outcome.error is not None:
            return False
        return not judge([outcome], self.objectives, _SHORT_KEEP_UP).misses

    # -- runs

    def _at_rate(self, scenario: Scenario, requests_per_s: float) -> Scenario:
        value = min(requests_per_s / self.key.requests_per_value, self.key.most)
        document = with_value(
            scenario.document, self.key.path, float(f"{value:.6g}"), scenario.file.parent
        )
        return resolve_scenario(document, scenario.file)

    def _short(self, scenario: Scenario) -> Scenario:
        run = scenario.run
        window_s = (run.duration_s - run.warmup_s) * _SHORT_SHARE
        return scenario.with_(run={"duration": f"{run.warmup_s + window_s} s"})

    def _carry_out(self, runs: Sequence[tuple[Scenario, int]]) -> list[Outcome]:
        study = [StudyRun(each.file, each.document, each.digest, seed) for each, seed in runs]
        with closing(outcomes(study, self.backend, self.jobs)) as ended:
            found = dict(ended)
        return [found[number] for number in range(len(runs))]

    def _check_time(self, needed_s: float) -> None:
        if monotonic() + needed_s > self.deadline_s:
            raise OutOfTimeError


_NOTHING = Verdict({}, 0.0, ())


def _without(placement: Placement, name: str) -> Placement:
    links = placement.links
    if links is not None:
        links = tuple(pair for pair in links if name not in pair)
    layers = {node: span for node, span in placement.layers.items() if node != name}
    return replace(placement, layers=layers, links=links)
