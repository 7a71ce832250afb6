"""The cheapest set of machines that meets objectives at a rate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import fsum, inf
from pathlib import Path
from time import monotonic

from helixsim.backends import Backend
from helixsim.errors import InputError
from helixsim.scenario.load import checked_document, load_scenario, resolve_scenario
from helixsim.scenario.overrides import apply_overrides
from helixsim.scenario.resolved import Scenario
from helixsim.studies.objectives import parse_objectives
from helixsim.studies.rate_key import rate_key
from helixsim.studies.sizing.facts import MachineFacts, machine_facts
from helixsim.studies.sizing.offers import Fleet
from helixsim.studies.sizing.result import SizedMachine, SizeResult
from helixsim.studies.sizing.search import SizeSearch
from helixsim.studies.sizing.sustained import sustained_rates
from helixsim.studies.sizing.trials import OutOfTimeError, Trial, Trials

SEEDS = 3
TIME_LIMIT_S = 300.0


def size(
    scenario: str | Path | Scenario,
    slo: Sequence[str] | str = (),
    *,
    rate: float | None = None,
    add: Sequence[str] | str = (),
    max_each: int | None = None,
    region: str | None = None,
    prices: Mapping[str, float] | None = None,
    survive: int = 0,
    keep: bool = False,
    seeds: int = SEEDS,
    overrides: Sequence[str] | str = (),
    time_limit_s: float = TIME_LIMIT_S,
    backend: Backend = "local",
    jobs: int | None = None,
    on_progress: Callable[[float, str, Trial | None], None] | None = None,
) -> SizeResult:
    """Search the cheapest set of machines that meets objectives at a rate.

    Machines are laid out by simple rules, see :func:`.layouts`. A set meets the objectives if the
    mean over the seeds of every figure is within its limit, and if requests finish as fast as they
    arrive, as for :func:`helixsim.capacity`. The lower bound of the result is proved; that no
    cheaper set meets the objectives is not, unless every set in between was simulated.

    Parameters
    ----------
    scenario
        A scenario, its file, or the name of a shipped one; its workload must be online.
    slo
        Objectives, such as ``slo.chat.attainment>=0.95, ttft_s.p95<=5``. If not given, the shares
        of the scenario's classes.
    rate
        Requests per second, on average; the scenario's if not given.
    add
        Machine types to choose from, such as ``H100-SXMx4``; the types of the scenario if empty.
    max_each
        Most machines of each kind that may be added.
    region
        Region of the machines; by default that of the scenario's machines of the same type, or of
        the coordinator.
    prices
        Machine type -> dollars per hour; others have the scenario's or usual prices.
    survive
        1: the objectives must be met with any one machine lost for the whole run, too.
    keep
        Whether the scenario's own machines are kept and paid, and others added to them.
    seeds
        Full runs of each set: the scenario's seed and the numbers after it.
    overrides
        Texts ``PATH=VALUE`` that change the scenario.
    time_limit_s
        The search stops then and keeps the best so far; no run starts that would probably end
        later.
    backend, jobs
        Backend of the runs, and number of runs at a time; see :func:`helixsim.sweep`.
    on_progress
        Called with seconds, a step, and the best so far.

    Raises
    ------
    InputError
        If the scenario, an objective, a machine or a price cannot be used.
    """
    _check(survive in (0, 1), "survive", f"0 or 1, not {survive}")
    _check(seeds >= 1, "seeds", f"at least 1, not {seeds}")
    _check(max_each is None or max_each >= 1, "max-each", f"at least 1, not {max_each}")
    _check(jobs is None or jobs >= 1, "jobs", f"at least 1, not {jobs}")
    _check(rate is None or 0 < rate < inf, "rate", f"a number above 0, not {rate}")
    _check(time_limit_s > 0, "time-limit", f"above 0 s, not {time_limit_s:g} s")
    found = _load(scenario, [overrides] if isinstance(overrides, str) else overrides)
    key = rate_key(found)
    objectives = parse_objectives(
        [slo] if isinstance(slo, str) else slo, found.slos, found.workload.class_names
    )
    fleet = Fleet(found, [add] if isinstance(add, str) else add, region, prices, keep=keep)
    facts = machine_facts(fleet)
    began_s = monotonic()
    trials = Trials(
        fleet=fleet,
        objectives=objectives,
        key=key,
        requests_per_s=key.value * key.requests_per_value if rate is None else rate,
        seeds=tuple(range(found.run.seed, found.run.seed + seeds)),
        backend=backend,
        jobs=jobs or os.cpu_count() or 1,
        deadline_s=began_s + time_limit_s,
        on_step=lambda step: None,
    )
    highest = key.most * key.requests_per_value
    _check(
        trials.requests_per_s <= highest * (1 + 1e-9),
        "rate",
        f"at most {highest:.6g} requests/s: the scenario's trace ends before its run at more",
    )
    search = SizeSearch(trials, fleet, facts, max_each=max_each, survive=survive)
    if on_progress is not None:
        tell = on_progress
        trials.on_step = lambda step: tell(monotonic() - began_s, step, search.best)
    lowest = next(iter(search.bound), None)
    rates: tuple[float, ...] | None = None
    ended = ""
    if lowest is not None or search.bound.floor < inf:
        try:
            rates = sustained_rates(trials, fleet, facts)
            search.run(rates)
        except OutOfTimeError:
            ended = "time limit"
        except KeyboardInterrupt:
            ended = "interrupted"
    best = search.best
    return SizeResult(
        scenario=found.name,
        requests_per_s=trials.requests_per_s,
        objectives=objectives,
        survive=survive,
        kinds=_kinds(fleet, facts, rates),
        best=best,
        lower_bound_dollars_per_hour=search.bound.floor if lowest is None else lowest[0],
        lower_bound_counts=None if lowest is None else lowest[1],
        tried=tuple(search.tried),
        num_cheaper_untried=0 if best is None else len(search.cheaper_sets()),
        sized=None if best is None else _sized(trials, best),
        watts=None if best is None else _watts(facts, best),
        seeds=trials.seeds,
        ended=ended,
    )


def _load(scenario: str | Path | Scenario, overrides: Sequence[str]) -> Scenario:
    if not isinstance(scenario, Scenario):
        return load_scenario(scenario, overrides)
    document = apply_overrides(checked_document(scenario), overrides, scenario.file.parent)
    return resolve_scenario(document, scenario.file)


def _sized(trials: Trials, best: Trial) -> Scenario:
    return trials.at_rate(trials.fleet.scenario(best.counts)).with_(placement=best.placement)


def _kinds(
    fleet: Fleet, facts: Sequence[MachineFacts], rates: Sequence[float] | None
) -> tuple[SizedMachine, ...]:
    return tuple(
        SizedMachine(
            offer.label,
            facts[index].dollars_per_hour,
            facts[index].bound_requests_per_s,
            None if rates is None else rates[index],
        )
        for index, offer in enumerate(fleet.offers)
    )


def _watts(facts: Sequence[MachineFacts], best: Trial) -> float | None:
    each = [(fact.watts, n) for fact, n in zip(facts, best.counts, strict=True) if n]
    known = [watts * n for watts, n in each if watts is not None]
    return fsum(known) if len(known) == len(each) else None


def _check(is_right: bool, where: str, message: str) -> None:
    if not is_right:
        raise InputError(message, where=where)
