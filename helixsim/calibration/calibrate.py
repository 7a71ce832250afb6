"""Calibrate by names: recorded runs and scenarios from files, settings with defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from helixsim.calibration.fit import (
    CalibrationResult,
    CalibrationSettings,
    Recording,
    fit_engine,
)
from helixsim.errors import InputError
from helixsim.physics.engine import PROTOTYPE_ENGINE, load_engine
from helixsim.recorded.recording import RecordedRun, load_recorded_run
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.yaml_files import did_you_mean

MAX_JOBS = 64

RunLike = RecordedRun | str | Path
ScenarioLike = Scenario | str | Path


def calibrate(
    runs: RunLike | Sequence[RunLike],
    scenarios: ScenarioLike | Sequence[ScenarioLike],
    *,
    name: str = "fitted",
    start: str = PROTOTYPE_ENGINE,
    hold_out: Sequence[str] = (),
    evaluations: int = 300,
    time_limit_s: float | None = None,
    slice_s: float = 90.0,
    warmup_s: float = 60.0,
    seeds: int | Sequence[int] = 3,
    jobs: int | None = None,
    on_progress: Callable[[str, int, float], None] = lambda step, tried, loss: None,
) -> CalibrationResult:
    """Fit the costs of the serving engine to recorded runs.

    Parameters
    ----------
    runs
        One recorded run or several, or their folders.
    scenarios
        The scenario of each run, in the same order, or one for all: scenarios, their files, or
        names of shipped ones.
    name
        Name of the fitted engine.
    start
        Engine that the fit begins with: the name of a shipped one, or a file.
    hold_out
        Names of runs that are not fitted, only replayed at the end.
    evaluations
        The most engines to try.
    time_limit_s
        When to stop trying; the result then depends on the machine.
    slice_s
        Length of the part of each run that is fitted, after its first 30 s.
    warmup_s
        Start of the replays at the end, left out of their figures.
    seeds
        Seeds of these replays; a number n means the seeds 0 to n - 1.
    jobs
        Number of processes; one for each core if not given.
    on_progress
        Called with the step, the number of engines tried, and the least loss so far.

    Returns
    -------
    CalibrationResult
        Its ``write`` makes an engine file, which scenarios name as ``engine``.

    Raises
    ------
    InputError
        If a file cannot be used, or no run is left to fit.
    """
    settings = CalibrationSettings(
        start=load_engine(start),
        name=name,
        evaluations=evaluations,
        time_limit_s=time_limit_s,
        slice_s=slice_s,
        warmup_s=warmup_s,
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        jobs=jobs or min(os.cpu_count() or 1, MAX_JOBS),
    )
    return fit_engine(_recordings(runs, scenarios, hold_out), settings, on_progress)


def _recordings(
    runs: RunLike | Sequence[RunLike],
    scenarios: ScenarioLike | Sequence[ScenarioLike],
    hold_out: Sequence[str],
) -> list[Recording]:
    run_list = [runs] if isinstance(runs, RecordedRun | str | Path) else list(runs)
    scenario_list = [scenarios] if isinstance(scenarios, Scenario | str | Path) else list(scenarios)
    if not run_list or len(scenario_list) not in (1, len(run_list)):
        raise InputError(
            f"{len(run_list)} recorded runs (folders) and {len(scenario_list)} scenarios; give one "
            "scenario for all runs, or one for each, in the same order"
        )
    if len(scenario_list) == 1:
        scenario_list *= len(run_list)
    loaded = [run if isinstance(run, RecordedRun) else load_recorded_run(run) for run in run_list]
    names = [run.name for run in loaded]
    for wanted in hold_out:
        if wanted not in names:
            raise InputError(
                f"no recorded run '{wanted}'; {did_you_mean(wanted, names)}", where="--hold-out"
            )
    files = {
        each: load_scenario(each)
        for each in dict.fromkeys(s for s in scenario_list if not isinstance(s, Scenario))
    }
    return [
        Recording(
            run,
            scenario if isinstance(scenario, Scenario) else files[scenario],
            held_out=run.name in hold_out,
        )
        for run, scenario in zip(loaded, scenario_list, strict=True)
    ]
