"""Send a recorded run through the simulator, and compare the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helixsim.control.control_plane import performance_model
from helixsim.control.load import LoadGenerator
from helixsim.control.routing import POLICIES, Policy, PolicyInputs
from helixsim.display import short_text, table_html
from helixsim.errors import InputError
from helixsim.metrics.result import RunResult
from helixsim.models.simulation import Simulation
from helixsim.recorded.figures import (
    ReplayFigures,
    errors,
    figures_of_passes,
    mean_figures,
    recorded_figures,
)
from helixsim.recorded.load import RecordedLoad, RecordedRoutes
from helixsim.recorded.recording import RecordedRun, tokens_by_node
from helixsim.recorded.sources import load_recording
from helixsim.scenario.coordinator_alone import with_coordinator_alone
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SERIES_STEP_S = 10.0
"""Time that one row of a replay's time series covers."""

_TOLERANCE_S = 1e-3
"""If the window ends with the last recorded pass, the simulated pass may be this much later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """Settings of a replay.

    Attributes
    ----------
    warmup_s
        Time from the start that is excluded from the figures.
    until_s
        End of the window of the figures; None for the end of sending.
    seeds
        One replay for each; figures are means over them. Seeds matter for delays of messages
        and, with `reroute`, for policies that choose at random.
    reroute
        Whether the scenario's scheduler finds routes, in place of the recorded routes.
    closed_loop
        Whether requests follow the completions that they followed; None to detect it.
    """

    warmup_s: float = 60.0
    until_s: float | None = None
    seeds: tuple[int, ...] = (0,)
    reroute: bool = False
    closed_loop: bool | None = None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A recorded run and its replays.

    Attributes
    ----------
    run, scenario, settings
        The recorded run, the scenario, and the settings of the replay.
    window_s
        Window of the figures, seconds since the start of sending.
    recorded, simulated, error
        Figures: `decode_tokens_per_s`, and mean and percentiles of `prompt_latency_s` and
        `decode_latency_s`; figures of the simulation are means over seeds; errors are
        ``(simulated - recorded) / recorded``.
    results
        Results of the simulations, one for each seed, with a row for every pass.
    """

    run: RecordedRun
    scenario: Scenario
    settings: ReplaySettings
    window_s: tuple[float, float]
    recorded: ReplayFigures
    simulated: ReplayFigures
    error: ReplayFigures
    results: tuple[RunResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Figures and settings as plain data."""
        return {
            "run": self.run.name,
            "scenario": self.scenario.name,
            "physics": self.scenario.physics,
            "seeds": list(self.settings.seeds),
            "rerouted": self.settings.reroute,
            "window_s": list(self.window_s),
            "recorded": self.recorded,
            "simulated": self.simulated,
            "error": self.error,
            "notes": self.notes,
        }

    @property
    def notes(self) -> list[str]:
        """Peculiarities of the replay, as sentences."""
        missing = self.run.num_without_route
        if not missing or self.settings.reroute:
            return []
        return [
            f"{missing} of {len(self.run.requests)} requests have no recorded route; the policy "
            f"{self.scenario.scheduler.policy} routed them"
        ]

    def plot(self) -> Figure:
        """Draw throughput and latencies, as recorded and as simulated."""
        from helixsim.recorded.plots import replay_figure

        return replay_figure(self)

    def __repr__(self) -> str:
        error = self.error["decode_tokens_per_s"]
        return short_text(
            "ReplayResult",
            f"{self.run.name} in {self.scenario.name}, {self.scenario.physics} physics: decode "
            f"throughput {self.simulated['decode_tokens_per_s']:.1f} tokens/s, recorded "
            f"{self.recorded['decode_tokens_per_s']:.1f}"
            + ("" if error is None else f" ({error:+.1%})"),
        )

    def _repr_html_(self) -> str:
        def text(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        rows = [
            (name, text(recorded, ",.3f"), text(simulated, ",.3f"), text(error, "+.1%"))
            for name, recorded, simulated, error in table(self)
        ]
        return table_html(
            f"Replay of {self.run.name} in {self.scenario.name}",
            rows,
            head=("figure", "recorded", "simulated", "error"),
        )

    @property
    def series(self) -> pd.DataFrame:
        """Both runs over time: a row for every :data:`SERIES_STEP_S`.

        Columns: `time_s` (the end of the row's span), and for `recorded` and `simulated` (the
        first seed) the decode throughput, mean prompt latency and mean decode latency of the
        passes that came back in the span; NaN where none did.
        """
        import pandas as pd

        edges = np.arange(0.0, self.run.length_s + SERIES_STEP_S, SERIES_STEP_S)
        columns: dict[str, np.ndarray] = {"time_s": edges[1:]}
        recorded = self.run.passes
        for name, ends, latency, is_prompt in (
            ("recorded", recorded.end_s, recorded.latency_s, recorded.is_prompt),
            ("simulated", *_passes(self.results[0], self.settings.warmup_s)),
        ):
            for phase, wanted in (("decode", ~is_prompt), ("prompt", is_prompt)):
                count = np.histogram(ends[wanted], edges)[0]
                total = np.histogram(ends[wanted], edges, weights=latency[wanted])[0]
                if phase == "decode":
                    columns[f"{name}_decode_tokens_per_s"] = count / SERIES_STEP_S
                with np.errstate(invalid="ignore"):
                    columns[f"{name}_{phase}_latency_s"] = total / count
        return pd.DataFrame(columns)

    @property
    def nodes(self) -> pd.DataFrame:
        """For each node: recorded work, simulated utilisation and simulated queues.

        Columns: `node`, `recorded_token_layers`, `simulated_utilisation`,
        `simulated_waiting_mean` and `simulated_waiting_max` (requests, samples of the first
        seed). A recording does not show where requests waited.
        """
        import pandas as pd

        samples = self.results[0].nodes
        by_node = samples.groupby("node", sort=False)
        recorded = tokens_by_node(self.run)
        frame = pd.DataFrame(
            {
                "simulated_utilisation": by_node["utilisation"].mean(),
                "simulated_waiting_mean": by_node["waiting"].mean(),
                "simulated_waiting_max": by_node["waiting"].max(),
            }
        ).reset_index()
        frame.insert(1, "recorded_token_layers", [recorded.get(n, 0) for n in frame["node"]])
        return frame


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """The load of a recorded run, in the form that a simulation needs."""

    run: RecordedRun
    scenario: Scenario
    closed_loop: bool
    reroute: bool
    _load_generators: list[RecordedLoad]

    @classmethod
    def of(cls, run: RecordedRun, scenario: Scenario, settings: ReplaySettings) -> RecordedSource:
        """The load of a run, with the settings of a replay."""
        closed = settings.closed_loop
        return cls(
            run, scenario, run.is_closed_loop if closed is None else closed, settings.reroute, []
        )

    @property
    def make_policy(self) -> Callable[[PolicyInputs], Policy] | None:
        """Factory of the policy that gives the recorded routes; None with `reroute`."""
        return None if self.reroute else self._recorded_routes

    def load_generator(self, start_s: float) -> LoadGenerator:
        """The load generator that sends the requests, from `start_s` on."""
        load_generator = RecordedLoad(
            self.run,
            start_s=start_s,
            passes_beyond_answer=performance_model(self.scenario).passes_beyond_answer,
            closed_loop=self.closed_loop,
        )
        self._load_generators.append(load_generator)
        return load_generator

    def _recorded_routes(self, inputs: PolicyInputs) -> Policy:
        inner = POLICIES.make(self.scenario.scheduler.policy, inputs)
        return RecordedRoutes(self.run, self._load_generators[-1], inputs.topology, inner)


def replay(
    run: RecordedRun | str | Path,
    scenario: Scenario | str | Path,
    settings: ReplaySettings | None = None,
    *,
    warmup_s: float | None = None,
    until_s: float | None = None,
    seeds: int | Sequence[int] | None = None,
    reroute: bool | None = None,
    closed_loop: bool | None = None,
    on_start: Callable[[Simulation], None] = lambda simulation: None,
) -> ReplayResult:
    """Replay a recorded run in the simulator.

    Requests arrive at their recorded times (closed loop: after the completions that they
    followed), with as many passes as recorded and, without `reroute`, on their recorded routes.
    An open loop in which all requests ended lasts until they have ended; other replays last as long
    as the recording; both are measured in the same window.

    Parameters
    ----------
    run
        The recording, or its folder.
    scenario
        The cluster that was recorded, its file, or the name of a shipped scenario; its workload is
        not used.
    settings
        Settings of the replay.
    warmup_s, until_s, seeds, reroute, closed_loop
        In place of the values in `settings`, see :class:`ReplaySettings`. A number of seeds
        stands for the seeds from 0 on.
    on_start
        Called with the simulation of each seed before it runs.

    Raises
    ------
    InputError
        If the window is empty, or recorded routes do not fit the scenario's placement.
    ScenarioError
        If the scenario has no placement.
    """
    found = run if isinstance(run, RecordedRun) else load_recording(run)
    if not isinstance(found, RecordedRun):
        raise InputError(
            "is a request log; helixsim.recorded.log_replay.replay_log replays it",
            file=found.source,
        )
    run = found
    scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    scenario = with_coordinator_alone(scenario)  # recorded requests enter and return there
    given = {
        "warmup_s": warmup_s,
        "until_s": until_s,
        "seeds": tuple(range(seeds)) if isinstance(seeds, int) else seeds and tuple(seeds),
        "reroute": reroute,
        "closed_loop": closed_loop,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    settings = replace(settings or ReplaySettings(), **changes)
    until = run.sending_ended_s if settings.until_s is None else settings.until_s
    if not 0 <= settings.warmup_s < until:
        raise InputError(
            f"the warm-up of {settings.warmup_s:g} s leaves no window "
            f"in the {until:g} s of sending; "
            "make it shorter",
            file=run.folder,
        )
    # A closed loop is cut off where the recording ends: its load depends on what was served.
    closed = run.is_closed_loop if settings.closed_loop is None else settings.closed_loop
    drains = run.has_drained and not closed
    tolerance_s = _TOLERANCE_S if until == run.length_s else 0.0
    timed = replace(
        scenario,
        run=replace(scenario.run, warmup_s=settings.warmup_s, duration_s=until, drain=drains),
    )
    results: list[RunResult] = []
    for seed in settings.seeds:
        simulation = Simulation(
            timed,
            seed=seed,
            record_iterations=True,
            source=RecordedSource.of(run, timed, settings),
        )
        simulation.end_s = simulation.start_s + max(run.length_s, until) + tolerance_s
        on_start(simulation)
        results.append(simulation.run())
        if results[-1].summary["partial"]:
            break
    recorded = recorded_figures(run, settings.warmup_s, until)
    simulated = mean_figures(
        [
            figures_of_passes(
                *_passes(result, settings.warmup_s),
                window_s=(settings.warmup_s, _window_end_s(result, settings.warmup_s, until)),
                tolerance_s=tolerance_s,
            )
            for result in results
        ]
    )
    return ReplayResult(
        run,
        timed,
        settings,
        (settings.warmup_s, until),
        recorded,
        simulated,
        errors(simulated, recorded),
        tuple(results),
    )


def _window_end_s(result: RunResult, warmup_s: float, until_s: float) -> float:
    """End of the window, earlier if the simulation was interrupted."""
    if not result.summary["partial"]:
        return until_s
    return float(result.summary["window_end_s"] - result.summary["window_start_s"]) + warmup_s


def _passes(result: RunResult, warmup_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """End in seconds since the start of sending, latency, and whether it is a prefill."""
    passes = result.iterations
    start_s = result.summary["window_start_s"] - warmup_s
    return (
        passes["end_s"].to_numpy() - start_s,
        (passes["end_s"] - passes["start_s"]).to_numpy(),
        (passes["phase"] == "prompt").to_numpy(),
    )


def table(result: ReplayResult) -> Sequence[tuple[str, float | None, float | None, float | None]]:
    """Rows of the comparison: title, recorded, simulated, error."""
    rows = []
    for key, value in result.recorded.items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for name, figure in pairs:
            simulated, error = (
                side[key] if name is None else side[key][name]
                for side in (result.simulated, result.error)
            )
            rows.append((key if name is None else f"{key}.{name}", figure, simulated, error))
    return rows
