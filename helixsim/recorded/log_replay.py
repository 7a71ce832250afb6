"""Send the requests of a request log through the simulator, and compare the figures.

Requests arrive at the times at which they were queued, with their recorded lengths; the scenario's
policy routes them. A latency begins at the coordinator in the simulation, and at the queue of the
engine in the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helixsim.control.control_plane import performance_model
from helixsim.control.load import Arrival, LoadGenerator, OpenLoop
from helixsim.control.routing import Policy, PolicyInputs
from helixsim.display import short_text, table_html
from helixsim.errors import InputError
from helixsim.metrics.result import RunResult
from helixsim.models.simulation import Simulation
from helixsim.recorded.figures import ReplayFigures, errors, mean_figures
from helixsim.recorded.log_figures import COLUMNS, TITLES, Latencies, sent_between
from helixsim.recorded.log_series import simulated_series, start_s
from helixsim.recorded.request_log import RequestLog
from helixsim.recorded.sources import load_recording
from helixsim.scenario.coordinator_alone import with_coordinator_alone
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import RunSettings, Scenario

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SAMPLES = 2000
"""Most samples of gauges over the makespan of the recording."""


@dataclass(frozen=True, slots=True)
class LogReplayResult:
    """A request log and its replays.

    Attributes
    ----------
    log, scenario
        The recording, and the scenario.
    chosen
        Mask of the requests whose latencies are compared.
    recorded, simulated, error
        Figures: mean and percentiles of `ttft_s`, `tpot_s` and `e2e_s`; `makespan_s` from the first
        request to the last token; `preemptions`, None if unknown. Figures of the simulation are
        means over seeds; errors are ``(simulated - recorded) / recorded``.
    seeds, results
        Results of the simulations, one for each seed.
    interrupted
        Whether Ctrl-C ended a simulation: its result is left out, unless it is the first.
    """

    log: RequestLog
    scenario: Scenario
    chosen: np.ndarray
    recorded: ReplayFigures
    simulated: ReplayFigures
    error: ReplayFigures
    seeds: tuple[int, ...]
    results: tuple[RunResult, ...]
    interrupted: bool = False

    @property
    def latencies(self) -> Latencies:
        """Simulated latencies with the first seed, in the order of the log."""
        return _latencies(self.log, self.results[0])

    @property
    def notes(self) -> list[str]:
        """Reasons to doubt the figures, as sentences."""
        notes = list(self.log.notes)
        for seed, result in zip(self.seeds, self.results, strict=True):
            status = result.requests["status"]
            others = status[status != "completed"].value_counts().sort_index()
            if len(others):
                why = ", ".join(f"{count} {name}" for name, count in others.items())
                notes.append(
                    f"seed {seed}: {int(others.sum())} of {len(status)} requests were not "
                    f"completed in the simulation ({why}); its figures lack them"
                )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Figures and settings as plain data."""
        return {
            "run": self.log.name,
            "scenario": self.scenario.name,
            "physics": self.scenario.physics,
            "seeds": list(self.seeds),
            "requests": len(self.log),
            "compared": int(self.chosen.sum()),
            "recorded": self.recorded,
            "simulated": self.simulated,
            "error": self.error,
            "notes": self.notes,
        }

    @property
    def requests(self) -> pd.DataFrame:
        """A row for each request: lengths, and latencies of both runs (the first seed)."""
        import pandas as pd

        recorded, simulated = Latencies.of(self.log), self.latencies
        columns: dict[str, Any] = {
            "request": range(len(self.log)),
            "sent_s": self.log.sent_s,
            "input_tokens": self.log.input_tokens,
            "output_tokens": self.log.output_tokens,
        }
        for name in TITLES:
            columns[f"recorded_{name}"] = getattr(recorded, name)
            columns[f"simulated_{name}"] = getattr(simulated, name)
        return pd.DataFrame(
            columns | {"simulated_preemptions": self.results[0].requests["preemptions"].to_numpy()}
        )

    @property
    def series(self) -> pd.DataFrame:
        """Requests over time, in both runs (the first seed).

        Columns: `time_s`, and for `recorded` and `simulated` the numbers of requests `running` and
        `waiting`; NaN where there is no sample. See :func:`.log_series.simulated_series`.
        """
        import pandas as pd

        simulated = simulated_series(self.results[0])
        series = self.log.series
        recorded = pd.DataFrame(
            {
                "time_s": [] if series is None else series.time_s,
                "recorded_running": [] if series is None else series.running,
                "recorded_waiting": [] if series is None else series.waiting,
            },
            dtype=float,
        )
        return recorded.merge(simulated, how="outer", on="time_s").sort_values("time_s")

    def plot(self) -> Figure:
        """Draw latencies and requests over time, as recorded and as simulated."""
        from helixsim.recorded.log_plots import replay_figure

        return replay_figure(self)

    def __repr__(self) -> str:
        return short_text(
            "LogReplayResult",
            f"{self.log.name} in {self.scenario.name}, {self.scenario.physics} physics: makespan "
            f"{self.simulated['makespan_s']:.1f} s, recorded {self.recorded['makespan_s']:.1f} s",
        )

    def _repr_html_(self) -> str:
        def text(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        rows = [
            (
                f"{key}.{name}",
                text(self.recorded[key][name], ",.3f"),
                text(self.simulated[key][name], ",.3f"),
                text(self.error[key][name], "+.1%"),
            )
            for key in TITLES
            for name in COLUMNS
        ]
        return table_html(
            f"Replay of {self.log.name} in {self.scenario.name}",
            rows,
            head=("figure", "recorded", "simulated", "error"),
        )


@dataclass(frozen=True, slots=True)
class LogSource:
    """The load of a request log, in the form that a simulation needs."""

    log: RequestLog
    passes_beyond_answer: int

    @property
    def make_policy(self) -> Callable[[PolicyInputs], Policy] | None:
        """None: the scenario's policy finds routes."""
        return None

    def load_generator(self, start_s: float) -> LoadGenerator:
        """Sends the requests at their recorded times, from `start_s` on."""
        log = self.log
        return OpenLoop(
            Arrival(start_s + sent_s, prompt, answer - self.passes_beyond_answer)
            for sent_s, prompt, answer in zip(
                log.sent_s.tolist(),
                log.input_tokens.tolist(),
                log.output_tokens.tolist(),
                strict=True,
            )
        )


def replay_log(
    log: RequestLog | str | Path,
    scenario: Scenario | str | Path,
    *,
    seeds: tuple[int, ...] = (0,),
    warmup_s: float = 0.0,
    until_s: float | None = None,
    on_start: Callable[[Simulation], None] = lambda simulation: None,
) -> LogReplayResult:
    """Replay a request log in the simulator, until all requests have ended.

    Parameters
    ----------
    log
        The recording, or its folder or file.
    scenario
        The cluster that was recorded, its file, or the name of a shipped scenario; its workload
        serves for its mean request only.
    seeds
        One replay for each; figures are means over them.
    warmup_s, until_s
        Latencies are of the requests that were sent in this window, in seconds since the first
        request; without an end, until the last.
    on_start
        Called with the simulation of each seed before it runs.

    Raises
    ------
    InputError
        If it is no request log, or no request was sent in the window.
    ScenarioError
        If the scenario has no placement.
    """
    found = log if isinstance(log, RequestLog) else load_recording(log)
    if not isinstance(found, RequestLog):
        raise InputError("is a recorded run; helixsim.replay replays it", file=found.folder)
    log = found
    scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    scenario = with_coordinator_alone(scenario)  # recorded requests enter and return there
    chosen = sent_between(log, warmup_s, until_s)
    if not chosen.any():
        raise InputError(
            f"no request was sent from {warmup_s:g} s to "
            f"{log.sent_s.max() if until_s is None else until_s:g} s; choose another window",
            file=log.source,
        )
    timed = replace(scenario, run=_timed(scenario, log))
    source = LogSource(log, performance_model(timed).passes_beyond_answer)
    results: list[RunResult] = []
    interrupted = False
    for seed in seeds:
        simulation = Simulation(timed, seed=seed, source=source)
        on_start(simulation)
        result = simulation.run()
        interrupted = bool(result.summary["partial"])
        if not (interrupted and results):
            results.append(result)
        if interrupted:
            break
    recorded = {
        **Latencies.of(log).statistics(chosen),
        "makespan_s": log.makespan_s,
        "preemptions": log.preemptions,
    }
    simulated = mean_figures([_simulated(log, result, chosen) for result in results])
    return LogReplayResult(
        log,
        timed,
        chosen,
        recorded,
        simulated,
        errors(simulated, recorded),
        seeds[: len(results)],
        tuple(results),
        interrupted,
    )


def _timed(scenario: Scenario, log: RequestLog) -> RunSettings:
    """The settings of the run: as long as the recording, and until all requests have ended."""
    interval = max(log.makespan_s / _SAMPLES, min(scenario.run.sample_interval_s, 1.0))
    if log.series is not None and len(log.series.time_s) > 1:
        interval = max(float(np.diff(log.series.time_s).min()), log.makespan_s / _SAMPLES)
    return replace(
        scenario.run,
        warmup_s=0.0,
        duration_s=log.makespan_s,
        drain=True,
        sample_interval_s=interval,
    )


def _latencies(log: RequestLog, result: RunResult) -> Latencies:
    """Simulated latencies; NaN for requests that did not get that far, or never arrived."""
    frame = result.requests.set_index("request").reindex(range(len(log)))
    several = log.output_tokens > 1
    return Latencies(
        frame["ttft_s"].to_numpy(),
        np.where(several, frame["tpot_s"].to_numpy(), np.nan),
        frame["e2e_s"].to_numpy(),
    )


def _simulated(log: RequestLog, result: RunResult, chosen: np.ndarray) -> ReplayFigures:
    frame = result.requests
    ends = frame["end_s"].dropna()
    return {
        **_latencies(log, result).statistics(chosen),
        "makespan_s": float(ends.max() - start_s(result)) if len(ends) else None,
        "preemptions": int(frame["preemptions"].sum()),
    }
