"""The fit: the engine that repeats recorded runs best, its errors, and its range of validity."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helixsim.calibration.latencies import Slice, cut, residuals
from helixsim.calibration.parameters import Parameters
from helixsim.calibration.search import Search
from helixsim.display import short_text
from helixsim.errors import InputError
from helixsim.physics.engine import EngineCosts, KnownRange
from helixsim.recorded.figures import ReplayFigures
from helixsim.recorded.recording import RecordedRun
from helixsim.recorded.replay import ReplaySettings, replay
from helixsim.scenario.resolved import Scenario

_LEAD_S = 30.0


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run and the scenario of its cluster."""

    run: RecordedRun
    scenario: Scenario
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """Settings of a calibration.

    Attributes
    ----------
    start
        The initial engine.
    name
        Name of the fitted engine.
    evaluations
        The most engines to try.
    time_limit_s
        Time limit of the search; the result then depends on the machine's speed.
    slice_s
        Length of the part of each run that is fitted, after the time in which its pipelines fill.
    warmup_s
        Start of the replays at the end, left out of their figures.
    seeds
        Seeds of these replays.
    jobs
        Number of processes.
    """

    start: EngineCosts
    name: str
    evaluations: int = 300
    time_limit_s: float | None = None
    slice_s: float = 90.0
    warmup_s: float = 60.0
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Quality:
    """Errors of an engine on a recording; `error` as in a ``ReplayResult``."""

    run: str
    scenario: str
    held_out: bool
    error: ReplayFigures


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The result of a calibration.

    Attributes
    ----------
    engine
        The best engine, with the range of the recordings.
    loss, start_loss
        Loss of the best engine and of the one at the start.
    evaluations
        Number of engines tried.
    quality
        Errors on each recording, by replay.
    interrupted
        Whether Ctrl-C ended it early.
    start
        Name of the engine that the fit began with.
    fitted
        Names of the runs that the engine was fitted to.
    """

    engine: EngineCosts
    loss: float
    start_loss: float
    evaluations: int
    quality: tuple[Quality, ...]
    interrupted: bool
    start: str
    fitted: tuple[str, ...]

    def __repr__(self) -> str:
        text = (
            f"{self.engine.name}, from {self.start}: loss {self.loss:.4f}, at the start "
            f"{self.start_loss:.4f}; {self.evaluations} engines tried"
        )
        return short_text("CalibrationResult", text)

    def write(self, file: str | Path, *, overwrite: bool = False) -> None:
        """Write the engine file, which scenarios name as ``engine``.

        Raises
        ------
        OutputError
            If the file exists and `overwrite` is false, or cannot be written.
        """
        from helixsim.calibration.document import engine_document
        from helixsim.output_files import write_whole
        from helixsim.yaml_files import yaml_text

        source = f"helixsim calibrate, fitted to {', '.join(self.fitted)}; from {self.start}"
        write_whole(Path(file), yaml_text(engine_document(self, source)), overwrite=overwrite)


OnStep = Callable[[str, int, float], None]
"""Called with the step, the number of engines that have been tried, and the least loss so far."""


def fit_engine(
    recordings: Sequence[Recording],
    settings: CalibrationSettings,
    on_progress: OnStep = lambda step, tried, loss: None,
) -> CalibrationResult:
    """Fit an engine to recordings, then replay all of them with it.

    The loss is the mean over recordings of the absolute sum of :func:`.latencies.residuals`.

    Parameters
    ----------
    recordings
        Recorded runs; a run that is held out is replayed only.
    settings
        Limits of the search, and how its result is judged.
    on_progress
        See :data:`OnStep`.

    Raises
    ------
    InputError
        If all runs are held out, or routes do not fit a placement.
    """
    fitted = [recording for recording in recordings if not recording.held_out]
    if not fitted:
        raise InputError("all runs are held out; at least one is needed for the fit")
    slices = [cut(each.run, each.scenario, settings.slice_s, _LEAD_S) for each in fitted]
    types = {node.machine_type for part in slices for node in part.topology.nodes}
    parameters = Parameters.of(settings.start, types)
    with _workers(slices, settings.jobs) as workers:
        search, interrupted = _search(workers, parameters, settings, on_progress)
    engine = parameters.engine(search.point.tolist()).model_copy(
        update={"name": settings.name, "known": known_range(fitted)}
    )
    quality: list[Quality] = []
    with suppress(KeyboardInterrupt):
        for recording in recordings:
            on_progress(f"replaying {recording.run.name}", search.tried, search.loss)
            quality.append(_quality(recording, engine, settings))
    return CalibrationResult(
        engine,
        search.loss,
        search.start_loss,
        search.tried,
        tuple(quality),
        interrupted,
        settings.start.name,
        tuple(each.run.name for each in fitted),
    )


def known_range(recordings: Sequence[Recording]) -> KnownRange:
    """The range of the recordings."""
    most_tokens, longest, context, flying = 0.0, 0, 0, 0
    for recording in recordings:
        run = recording.run
        passes = run.passes
        ends = np.sort(passes.end_s)
        left = np.arange(1, len(ends) + 1)
        back = np.searchsorted(ends, np.sort(passes.start_s), side="right")
        flying = max(flying, int((left - back).max()))
        longest = max(longest, int(passes.num_tokens.max()))
        context = max(context, int((passes.context_tokens + passes.num_tokens).max()))
        decodes = passes.end_s[~passes.is_prompt]
        counts = np.histogram(decodes[np.isfinite(decodes)], np.arange(0, run.length_s + 60, 60))[0]
        most_tokens = max(most_tokens, float(counts.max()) / 60)
    types = {node.machine_type for each in recordings for node in each.scenario.cluster}
    return KnownRange(
        machine_types=tuple(sorted(types)),
        llms=tuple(sorted({each.scenario.llm.name for each in recordings})),
        max_in_flight=flying,
        max_prompt_tokens=longest,
        max_context_tokens=context,
        max_decode_tokens_per_s=most_tokens,
    )


def _quality(recording: Recording, engine: EngineCosts, settings: CalibrationSettings) -> Quality:
    scenario = replace(recording.scenario, physics="calibrated", engine=engine)
    warmup_s = min(settings.warmup_s, recording.run.sending_ended_s / 2)
    result = replay(
        recording.run, scenario, ReplaySettings(warmup_s=warmup_s, seeds=settings.seeds)
    )
    return Quality(recording.run.name, scenario.name, recording.held_out, result.error)


# -- the search --------------------------------------------------------------------------------

_slices: list[Slice] = []


def _begin_worker(slices: list[Slice]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the search
    _slices[:] = slices


def _residuals_in_worker(task: tuple[int, EngineCosts]) -> np.ndarray:
    index, engine = task
    return residuals(_slices[index], engine)


class _Workers:
    """Computes differences, in this or in other processes."""

    def __init__(self, slices: list[Slice], pool: ProcessPoolExecutor | None) -> None:
        self._slices = slices
        self._pool = pool

    def residuals(self, engines: Sequence[EngineCosts]) -> list[np.ndarray]:
        """Differences of each engine from all slices; their absolute sum is the mean loss."""
        num = len(self._slices)
        tasks = [(index, engine) for engine in engines for index in range(num)]
        if self._pool is None:
            found = [residuals(self._slices[index], engine) for index, engine in tasks]
        else:
            found = list(self._pool.map(_residuals_in_worker, tasks))
        return [np.concatenate(found[i * num : (i + 1) * num]) / num for i in range(len(engines))]


@contextmanager
def _workers(slices: list[Slice], jobs: int) -> Iterator[_Workers]:
    if jobs == 1:
        yield _Workers(slices, None)
        return
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(slices,),
    )
    try:
        yield _Workers(slices, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _search(
    workers: _Workers,
    parameters: Parameters,
    settings: CalibrationSettings,
    on_progress: OnStep,
) -> tuple[Search, bool]:
    """The search at its end, and whether it was interrupted."""
    search = Search(
        len(parameters.names),
        lambda points: workers.residuals([parameters.engine(point.tolist()) for point in points]),
        lambda tried, loss: on_progress("fitting", tried, loss),
    )
    try:
        search.run(settings.evaluations, settings.time_limit_s)
    except KeyboardInterrupt:
        return search, True
    return search, False
