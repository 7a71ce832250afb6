"""Simulations of sets of machines at a rate, short ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import ceil, sqrt
from time import monotonic
from typing import Any

from helixsim.backends import Backend
from helixsim.errors import HelixError
from helixsim.placement.placement import Placement
from helixsim.planner.objective import Limit
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.backends import outcomes
from helixsim.studies.objectives import Verdict, judge
from helixsim.studies.rate_key import RateKey, with_value
from helixsim.studies.runs import Outcome, StudyRun
from helixsim.studies.sizing.layouts import layouts
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
    placement
        The layers of each machine; None if the machines cannot be laid out.
    """

    counts: Counts
    dollars_per_hour: float
    is_full: bool
    verdict: Verdict
    by_seed: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    lost: str = ""
    placement: Placement | None = None

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
    _short_s: float = field(default=0.0, init=False)
    _seconds_of: dict[int, float] = field(default_factory=dict, init=False)
    _short_trials: list[Trial] = field(default_factory=list, init=False)

    def try_set(self, counts: Counts, dollars: float, text: str, *, survive: bool) -> Trial:
        """Simulate a set: a short run of each layout, full runs, and without one machine of each.

        Raises
        ------
        OutOfTimeError
            If there is no time for it.
        """
        failed = Trial(counts, dollars, False, Verdict({}, 0.0, ()))
        try:
            options = layouts(self.at_rate(self.fleet.scenario(counts)))
        except HelixError as error:
            return replace(failed, is_full=True, verdict=Verdict({}, 0.0, (str(error),)))
        for scenario in self._promising(options, failed, text):
            trial = self._full(scenario, failed, text)
            if trial.meets and survive:
                trial = self._after_losses(scenario, trial, text)
            if trial.meets:
                return trial
            failed = trial
        return failed if failed.verdict.misses else self._short_trials[0]

    def _promising(
        self, options: Sequence[Scenario], trial: Trial, text: str
    ) -> Iterator[Scenario]:
        """The layouts that do not fail clearly in a short run, the best first."""
        machines = len(options[0].cluster)
        self._check_time(self._expected_s(machines))
        began_s = monotonic()
        self.on_step(f"{text}: short run")
        seed = self.seeds[0]
        found = self._carry_out([(self._short(each), seed) for each in options])
        self._short_s = monotonic() - began_s
        self._seconds_of[machines] = self._short_s
        self._short_trials = sorted(
            (
                replace(trial, placement=scenario.placement, **self._judged([seed], [outcome]))
                for scenario, outcome in zip(options, found, strict=True)
            ),
            key=self.nearness,
            reverse=True,
        )
        for short in self._short_trials:
            if not self._fails_clearly(short.verdict):
                yield next(each for each in options if each.placement == short.placement)

    def nearness(self, trial: Trial) -> float:
        """How close a trial comes to the objectives: the worst ratio of figure and limit, or 1."""
        return min(limit.kept_share(trial.verdict.figures) for limit in self.objectives)

    def _full(self, scenario: Scenario, trial: Trial, text: str) -> Trial:
        self._check_time(self._short_s / _SHORT_SHARE * ceil(len(self.seeds) / self.jobs))
        self.on_step(f"{text}: full runs")
        found = self._carry_out([(scenario, seed) for seed in self.seeds])
        return replace(
            trial,
            is_full=True,
            placement=scenario.placement,
            **self._judged(self.seeds, found),
        )

    def _after_losses(self, whole: Scenario, trial: Trial, text: str) -> Trial:
        """The first loss of a machine with which objectives are missed; without one, the trial."""
        for lost, rest in self._losses(whole):
            named = f"{text} without {lost}"
            start = replace(trial, lost=lost, is_full=False)
            left = list(self._promising([rest], start, named))
            without = self._full(rest, start, named) if left else self._short_trials[0]
            if not without.meets:
                return replace(without, placement=whole.placement)
        return trial

    def _fails_clearly(self, verdict: Verdict) -> bool:
        if not verdict.figures:  # the run failed
            return bool(verdict.misses)
        return any(
            limit.figure in verdict.figures and limit.kept_share(verdict.figures) < _CLEARLY
            for limit in self.objectives
        )

    def _judged(self, seeds: Sequence[int], found: Sequence[Outcome]) -> dict[str, Any]:
        """Verdict and figures of each seed, as attributes of a :class:`Trial`."""
        errors = tuple(dict.fromkeys(each.error for each in found if each.error is not None))
        if errors:
            return {"verdict": Verdict({}, 0.0, errors), "by_seed": {}}
        by_seed = {}
        for seed, outcome in zip(seeds, found, strict=True):
            figures = judge([outcome], self.objectives, KEEP_UP).figures
            by_seed[seed] = {
                limit.figure: figures[limit.figure]
                for limit in self.objectives
                if limit.figure in figures
            }
        return {"verdict": judge(found, self.objectives, KEEP_UP), "by_seed": by_seed}

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
        """Whether scenarios meet the objectives at rates, by short runs.

        Raises
        ------
        OutOfTimeError
            If there is no time for it.
        """
        self._check_time(0.0)
        runs = [
            (self._short(self.at_rate(scenario, requests_per_s)), self.seeds[0])
            for scenario, requests_per_s in cases
        ]
        return [self._is_sustained(outcome) for outcome in self._carry_out(runs)]

    def _is_sustained(self, outcome: Outcome) -> bool:
        if outcome.error is not None:
            return False
        return not judge([outcome], self.objectives, _SHORT_KEEP_UP).misses

    # -- runs

    def at_rate(self, scenario: Scenario, requests_per_s: float | None = None) -> Scenario:
        """The scenario at a rate, by default the one that is asked for."""
        rate = self.requests_per_s if requests_per_s is None else requests_per_s
        value = min(rate / self.key.requests_per_value, self.key.most)
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

    def _expected_s(self, machines: int) -> float:
        """The probable time of a short run, from the one with the nearest number of machines.

        It grows less than in proportion: more machines share the same requests.
        """
        if not self._seconds_of:
            return 0.0
        nearest = min(self._seconds_of, key=lambda known: (abs(known - machines), known))
        return self._seconds_of[nearest] * sqrt(machines / nearest)

    def _check_time(self, needed_s: float) -> None:
        if monotonic() + needed_s > self.deadline_s:
            raise OutOfTimeError


def _without(placement: Placement, name: str) -> Placement:
    links = placement.links
    if links is not None:
        links = tuple(pair for pair in links if name not in pair)
    layers = {node: span for node, span in placement.layers.items() if node != name}
    return replace(placement, layers=layers, links=links)
