"""Explain a placement: what binds it, and what one change would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING

from helixsim.control.control_plane import placed_topology
from helixsim.errors import HelixError, InputError
from helixsim.metrics.result import RunResult
from helixsim.models.simulation import Simulation
from helixsim.placement.cut import min_cut
from helixsim.placement.cut_text import bottleneck_text
from helixsim.placement.flow import max_flow
from helixsim.planner.place import place
from helixsim.planner.problem import planning_problem
from helixsim.planner.served.node_rates import UnboundedError
from helixsim.planner.served_bound import ServedBound, served_bound_of_placement
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.explain_changes import (
    Change,
    idle_machines,
    machines,
    more_memory,
    moved_layers,
    number_formats,
    small_shares,
)
from helixsim.studies.explain_estimates import ranked
from helixsim.studies.explain_findings import Evidence, binding_stage, findings
from helixsim.studies.explain_goal import THROUGHPUT, Goal, figures, goal_of, parse_goal
from helixsim.studies.explain_measures import Measures, measures
from helixsim.studies.explain_network import network_changes
from helixsim.studies.explain_result import Explanation, Limits, WhatIf
from helixsim.studies.explain_routes import route_times

if TYPE_CHECKING:
    from pathlib import Path

    from helixsim.placement.topology import Topology

LONGEST_S = 600.0
"""Longer runs are shortened to this simulated time."""
SIMULATED = 3
"""Changes that are simulated: the ones with the greatest estimated gains."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where to report what is being done; each function may be left out.

    Attributes
    ----------
    on_step
        Called with the step, such as ``simulates the placement``, the amount done, and the total.
    on_simulation
        Called with each simulation before it runs.
    """

    on_step: Callable[[str, float, float], None] = lambda *_: None
    on_simulation: Callable[[Simulation], None] = lambda _: None


def explain(
    scenario: Scenario | str | Path,
    *,
    goal: str | None = None,
    simulated: int = SIMULATED,
    progress: Progress | None = None,
) -> Explanation:
    """Simulate a placement once, and say what binds it and what one change would give.

    All changes are estimated by the planner's surrogate, and the best ones by that estimate are
    simulated, with the seed of the scenario: differences of less than 2 % mean nothing.

    Parameters
    ----------
    scenario
        The scenario, or its file or name. Without a placement, :func:`helixsim.place` gives it one.
    goal
        The figure to improve: ``decode_tokens_per_s``, ``ttft_s.p95``, ``tpot_s.p95`` or
        ``e2e_s.p95``. By default the throughput offline and under overload, else the latency that
        is closest to its limit.
    simulated
        How many changes to simulate.
    progress
        Where to report progress.

    Returns
    -------
    Explanation
        After Ctrl-C, what was known by then.

    Raises
    ------
    InputError
        If there is no such goal, or the scenario has errors.
    PlacementError, NoRouteError
        If the placement serves nothing.
    KeyboardInterrupt
        If the first simulation was interrupted.

    Examples
    --------
    >>> import helixsim
    >>> scenario = helixsim.load_scenario("quickstart", ["run.duration=60 s"])
    >>> explanation = helixsim.explain(scenario, simulated=0)
    >>> explanation.findings[0].kind
    'kv'
    """
    if simulated < 0:
        raise InputError(f"{simulated} is below 0", where="simulated")
    wanted = None if goal is None else parse_goal(goal)
    whole = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    return _Explaining(place(whole), wanted, simulated, progress or Progress()).explain()


@dataclass
class _Explaining:
    """One explanation in progress."""

    scenario: Scenario
    wanted: Goal | None
    num_simulated: int
    progress: Progress
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def explain(self) -> Explanation:
        scenario = self.scenario = self._shortened()
        result = self._simulate(scenario, "simulates the placement", 0)
        if result is None:
            raise KeyboardInterrupt
        topology = placed_topology(scenario)
        used = measures(scenario, topology, result)
        times = route_times(scenario, topology, result, used)
        found = findings(Evidence(scenario, topology, result, used, times))
        goal = self.wanted or goal_of(scenario, result)
        base = figures(result.summary)
        self.notes += [str(warning) for warning in result.summary["warnings"]]
        limits = self._limits(topology, result)
        return Explanation(
            scenario=scenario.name,
            goal=goal,
            figures=base,
            findings=found,
            limits=limits,
            what_ifs=self._what_ifs(topology, used, goal, base),
            measures=used,
            num_layers=scenario.llm.num_layers,
            notes=tuple(self.notes),
            interrupted=self.interrupted,
        )

    def _shortened(self) -> Scenario:
        scenario = self.scenario
        run = scenario.run
        if run.duration_s <= LONGEST_S:
            return scenario
        warmup_s = min(run.warmup_s, LONGEST_S / 2)
        self.notes.append(
            f"runs are shortened from {run.duration_s:g} s to {LONGEST_S:g} s, "
            f"{warmup_s:g} s of it warm-up"
        )
        return replace(scenario, run=replace(run, duration_s=LONGEST_S, warmup_s=warmup_s))

    def _simulate(self, scenario: Scenario, step: str, number: int) -> RunResult | None:
        """The result of a run; None if Ctrl-C ended it."""
        self.progress.on_step(step, number, 1 + self.num_simulated)
        simulation = Simulation(scenario)
        self.progress.on_simulation(simulation)
        result = simulation.run()
        return None if result.summary["partial"] else result

    def _limits(self, topology: Topology, result: RunResult) -> Limits:
        problem = planning_problem(self.scenario)
        flow = max_flow(topology, problem.throughput)
        cut = min_cut(topology, problem.throughput, flow)
        return Limits(
            max_flow_tokens_per_s=flow.tokens_per_s,
            total_tokens_per_s=float(result.summary["total_tokens_per_s"]),
            cut=bottleneck_text(topology, cut),
            served_bound=self._served_bound(),
        )

    def _served_bound(self) -> ServedBound | None:
        try:
            return served_bound_of_placement(self.scenario)
        except UnboundedError as error:
            self.notes.append(f"no bound on served tokens: {error.message}")
            return None

    # -- what if -----------------------------------------------------------------------------

    def _what_ifs(
        self, topology: Topology, used: Measures, goal: Goal, base: dict[str, float]
    ) -> tuple[WhatIf, ...]:
        try:
            order = self._ranked(topology, used, goal)
        except KeyboardInterrupt:
            self.interrupted = True
            return ()
        checked, left = order[: self.num_simulated], order[self.num_simulated :]
        found = []
        for number, (gain, change) in enumerate(checked, start=1):
            what_if = self._what_if(gain, change)
            if not self.interrupted:
                what_if = self._simulated(what_if, change, goal, base, number)
            found.append(what_if)
        found.sort(key=lambda each: -_sorting_gain(each))
        return (*found, *(self._what_if(gain, change) for gain, change in left))

    def _ranked(self, topology: Topology, used: Measures, goal: Goal) -> list[tuple[float, Change]]:
        scenario, stage = self.scenario, binding_stage(used)
        busiest = max(used.stages, key=lambda each: each.load)
        changes = [
            *idle_machines(scenario, stage, [node.name for node in used.nodes if node.is_idle]),
            *(moved for each in {stage: 0, busiest: 0} for moved in moved_layers(scenario, each)),
            *small_shares(scenario, used),
            *network_changes(scenario, topology, used),
            *number_formats(scenario),
            *more_memory(scenario, topology),
            *machines(scenario, stage),
        ]

        def tell(done: int, total: int) -> None:
            self.progress.on_step("estimates changes", done, total)

        return ranked(scenario, changes, goal, tell)

    def _what_if(self, gain: float, change: Change) -> WhatIf:
        placement = change.scenario.placement
        return WhatIf(
            kind=change.kind,
            text=change.text,
            estimated_gain=gain,
            dollars_per_hour=change.dollars_per_hour,
            placement=None if placement == self.scenario.placement else placement,
        )

    def _simulated(
        self, what_if: WhatIf, change: Change, goal: Goal, base: dict[str, float], number: int
    ) -> WhatIf:
        """A change with the figures of its simulation."""
        try:
            result = self._simulate(change.scenario, f"simulates {change.text}", number)
        except HelixError as error:
            self.notes.append(f"{change.text}: {error}")
            return what_if
        except KeyboardInterrupt:
            result = None
        if result is None:
            self.interrupted = True
            return what_if
        after = figures(result.summary)
        if goal.figure not in base or goal.figure not in after:
            self.notes.append(f"{change.text}: no request was measured for {goal.figure}")
            return what_if
        more = after["output_tokens_per_s"] - base["output_tokens_per_s"]
        price = change.dollars_per_hour
        return replace(
            what_if,
            simulated_gain=goal.gain(base[goal.figure], after[goal.figure]),
            figures=after,
            dollars_per_million_tokens=price / 3600 / more * 1e6
            if price is not None and more > 0 and goal.figure == THROUGHPUT
            else None,
        )


def _sorting_gain(each: WhatIf) -> float:
    gain = each.estimated_gain if each.simulated_gain is None else each.simulated_gain
    return gain if isfinite(gain) else 0.0
