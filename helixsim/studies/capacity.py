"""The highest arrival rate at which objectives are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path

from helixsim.backends import Backend
from helixsim.errors import InputError
from helixsim.planner.place import place
from helixsim.planner.served.request_mix import request_mix
from helixsim.scenario.load import checked_document, load_scenario, resolve_scenario
from helixsim.scenario.overrides import apply_overrides
from helixsim.scenario.resolved import Scenario
from helixsim.studies.capacity_interval import (
    MIN_SEEDS,
    CapacityInterval,
    interval_of,
    seed_capacity,
)
from helixsim.studies.capacity_result import CapacityResult, Probe
from helixsim.studies.capacity_runs import CapacityRuns
from helixsim.studies.capacity_window import Windows, tells_nothing
from helixsim.studies.objectives import (
    OWN_CLASS,
    judge,
    parse_objectives,
    request_limits,
)
from helixsim.studies.rate_key import rate_key, with_value
from helixsim.studies.runs import Outcome, StudyRun

TOLERANCE = 0.02
KEEP_UP = 0.95
SEEDS = 3
MAX_STEPS = 20
"""So often the rate is doubled or halved in search of a bracket: by a million at most."""
_LEAST_TOLERANCE = 0.001
_DIGITS = 6


def capacity(
    scenario: str | Path | Scenario,
    slo: Sequence[str] | str = (),
    *,
    seeds: int = SEEDS,
    overrides: Sequence[str] | str = (),
    tolerance: float = TOLERANCE,
    keep_up: float = KEEP_UP,
    backend: Backend = "local",
    jobs: int | None = None,
    output: str | Path | None = None,
    on_start: Callable[[CapacitySearch], None] | None = None,
    on_probe: Callable[[Probe], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CapacityResult:
    """Search the highest arrival rate at which objectives are kept.

    The rate is doubled or halved, from the scenario's own, until one is kept and one is not, and
    then bisected. A rate is kept if the mean over the seeds of every figure is within its limit,
    and if requests finish as fast as they arrive. Then the same is bisected for each seed by
    itself, for a confidence interval, if there are three seeds or more.

    Parameters
    ----------
    scenario
        A scenario, its file, or the name of a shipped one; its workload must be online.
    slo
        Objectives, such as ``ttft_s.p95<=5, tpot_s.p95<=1``. If not given, the shares of
        the scenario's classes.
    seeds
        Runs at each rate: the scenario's seed and the numbers after it.
    overrides
        Texts ``PATH=VALUE`` that change the scenario.
    tolerance
        The search ends when the lowest rate that is not kept is at most this share above the
        highest that is.
    keep_up
        Share of the requests arriving in the windows that must finish in them.
    backend, jobs
        Backend of the runs, and number of runs at a time; see :func:`helixsim.sweep`.
    output
        Folder that keeps every run as it ends, and the result. Runs that it holds already are not
        run again, so that a search goes on where it was ended. Nothing is kept if not given.
    on_start, on_probe, on_progress
        Called with the search when it starts, with each rate that was tried, and with the number
        of its runs that are done and of all.

    Raises
    ------
    InputError
        If the scenario or an objective cannot be used, or the window of its runs says nothing: it
        is shorter than a request's life, or too few requests arrive in it.
    SimulationError
        If a run fails.
    OutputError
        If the folder cannot be used.
    """
    search = CapacitySearch(
        scenario, slo, overrides, seeds, tolerance, keep_up, backend, jobs, output
    )
    if on_start is not None:
        on_start(search)
    search.on_probe = on_probe or _ignore
    search.on_progress = on_progress or _ignore
    try:
        search.run()
        search.find_interval()
    except KeyboardInterrupt:
        return search.finish(interrupted=True)
    return search.finish()


class CapacitySearch:
    """One search for the highest rate.

    Attributes
    ----------
    name, path, objectives, seeds
        See :class:`CapacityResult`.
    """

    def __init__(
        self,
        scenario: str | Path | Scenario,
        slo: Sequence[str] | str,
        overrides: Sequence[str] | str,
        seeds: int,
        tolerance: float,
        keep_up: float,
        backend: Backend,
        jobs: int | None,
        output: str | Path | None = None,
    ) -> None:
        _check(seeds >= 1, "seeds", f"at least 1, not {seeds}")
        _check(jobs is None or jobs >= 1, "jobs", f"at least 1, not {jobs}")
        _check(
            _LEAST_TOLERANCE <= tolerance <= 1,
            "tolerance",
            f"from {_LEAST_TOLERANCE:g} to 1, not {tolerance:g}",
        )
        _check(0 < keep_up <= 1, "keep-up", f"above 0 and at most 1, not {keep_up:g}")
        texts = [overrides] if isinstance(overrides, str) else overrides
        if isinstance(scenario, Scenario):
            changed = apply_overrides(checked_document(scenario), texts, scenario.file.parent)
            found = resolve_scenario(changed, scenario.file)
        else:
            found = load_scenario(scenario, texts)
        found = place(found)
        self._file = found.file
        document: Mapping[str, object] = found.document
        self.name = found.name
        key = rate_key(found)
        self.path, self._start, self._most = key.path, key.value, key.most
        self._requests_per_rate = key.requests_per_value
        self.objectives = parse_objectives(
            [slo] if isinstance(slo, str) else slo, found.slos, found.workload.class_names
        )
        limits = request_limits(self.objectives)
        if limits and OWN_CLASS not in {known.name for known in found.slos}:
            document = with_value(document, f"slo.{OWN_CLASS}", limits, self._file.parent)
        self._document = document
        self.seeds = tuple(range(found.run.seed, found.run.seed + seeds))
        self._tolerance, self._keep_up = tolerance, keep_up
        self._runs = CapacityRuns(backend, jobs, output)
        self._windows = Windows(
            self._file,
            found.run.duration_s - found.run.warmup_s,
            found.run.warmup_s,
            request_mix(found).decodes,
            keep_up,
        )
        self.on_probe: Callable[[Probe], None] = _ignore
        self.on_progress: Callable[[int, int], None] = _ignore
        self.probes: list[Probe] = []
        self._outcomes: dict[float, dict[int, Outcome]] = {}
        self._interval: CapacityInterval | None = None

    def run(self) -> None:
        """Bracket, then bisect."""
        rate = self._start
        first = self._probe(rate)
        for _ in range(MAX_STEPS):
            if first.meets:
                if rate >= self._most:
                    return
                rate = min(_rounded(rate * 2), self._most)
            elif tells_nothing(self._found(rate)):
                break  # at lower rates still fewer requests arrive
            else:
                rate = _rounded(rate / 2)
            if self._probe(rate).meets != first.meets:
                break
        self._check_answer(rate)
        while True:
            low, high = self._bracket()
            if low is None or high is None:
                return
            middle = _rounded(sqrt(low.rate * high.rate))
            done = high.rate <= low.rate * (1 + self._tolerance)
            if done or not low.rate < middle < high.rate:
                self._check_answer(low.rate)
                return
            self._probe(middle)

    def _found(self, rate: float) -> list[Outcome]:
        """The outcomes of all seeds at a rate that was tried."""
        return [self._outcomes[rate][seed] for seed in self.seeds]

    def _check_answer(self, rate: float) -> None:
        """Refuse what the windows of the runs cannot say of a rate, and of the one above."""
        tried = {probe.rate: self._found(probe.rate) for probe in self.probes}
        by_rate = {probe.rate: probe for probe in self.probes}
        self._windows.check_tried(by_rate[rate], tried)
        _, above = self._bracket()
        if above is not None and by_rate[rate].meets:
            self._windows.check_missed(above, tried)

    def find_interval(self) -> None:
        """Bisect for each seed by itself, and take the interval of their mean."""
        low, high = self._bracket()
        if len(self.seeds) < MIN_SEEDS or low is None or high is None:
            return
        found = []
        for seed in self.seeds:

            def meets(rate: float, seed: int = seed) -> bool:
                self._carry_out(rate, [seed])
                outcome = self._outcomes[rate][seed]
                return not judge([outcome], self.objectives, self._keep_up).misses

            known = {probe.rate: meets(probe.rate) for probe in self.probes}
            rate = seed_capacity(known, meets, self._most, self._tolerance, _rounded)
            found.append(rate * self._requests_per_rate)
        self._interval = interval_of(found, self._tolerance)

    def finish(self, *, interrupted: bool = False) -> CapacityResult:
        """The result so far; the folder keeps it."""
        result = self.result(interrupted=interrupted)
        self._runs.keep_result(result.to_json())
        return result

    def result(self, *, interrupted: bool = False) -> CapacityResult:
        """The result so far."""
        best, above = self._bracket()
        return CapacityResult(
            self.name,
            self.path,
            self.objectives,
            self.seeds,
            tuple(self.probes),
            best,
            above,
            interrupted,
            self._interval,
        )

    def _bracket(self) -> tuple[Probe | None, Probe | None]:
        """The highest rate that is kept below the lowest that is not, and that one."""
        above = min(
            (probe for probe in self.probes if not probe.meets),
            key=lambda probe: probe.rate,
            default=None,
        )
        kept = (
            probe
            for probe in self.probes
            if probe.meets and (above is None or probe.rate < above.rate)
        )
        return max(kept, key=lambda probe: probe.rate, default=None), above

    def _probe(self, rate: float) -> Probe:
        self._carry_out(rate, self.seeds)
        verdict = judge(self._found(rate), self.objectives, self._keep_up)
        probe = Probe(rate, rate * self._requests_per_rate, verdict)
        self.probes.append(probe)
        self.on_probe(probe)
        return probe

    def _carry_out(self, rate: float, seeds: Sequence[int]) -> None:
        """Run what has not been run of a rate."""
        known = self._outcomes.setdefault(rate, {})
        left = [seed for seed in seeds if seed not in known]
        if not left:
            return
        document = with_value(self._document, self.path, rate, self._file.parent)
        digest = resolve_scenario(document, self._file).digest
        runs = [StudyRun(self._file, document, digest, seed) for seed in left]
        found = self._runs.carry_out(runs, f"{self.path}={rate:g}", self.on_progress)
        known.update(zip(left, found, strict=True))


def _rounded(rate: float) -> float:
    """To six digits, so that a rate can be read and typed."""
    return float(f"{rate:.{_DIGITS}g}")


def _check(is_right: bool, where: str, message: str) -> None:
    if not is_right:
        raise InputError(message, where=where)


def _ignore(*_: object) -> None:
    pass
