"""Run a scenario with many values and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from helixsim.backends import Backend
from helixsim.display import short_text, table_html
from helixsim.errors import InputError
from helixsim.metrics.output import TableFormat
from helixsim.metrics.recorder import Columns
from helixsim.metrics.result import frame_of
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.studies.backends import outcomes
from helixsim.studies.combinations import Sweep, load_sweep, scenario_sweep
from helixsim.studies.folder import SweepFolder
from helixsim.studies.frames import cell_table, summary_table
from helixsim.studies.runs import Outcome

if TYPE_CHECKING:
    import pandas as pd

OnProgress = Callable[[int, int], None]
"""Called with the number of runs that are done, and of all."""


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes
    ----------
    scenario
        Name of the scenario.
    num_failed
        Runs that ended in an error.
    tables
        ``cells`` and ``summary`` by columns.
    """

    scenario: str
    num_failed: int
    tables: dict[str, Columns]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per run: what was set, seed, status, and the figures of its summary."""
        return frame_of(self.tables["cells"])

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per combination and figure: mean, sd and 95 % interval over the seeds."""
        return frame_of(self.tables["summary"])

    def __repr__(self) -> str:
        runs = len(self.tables["cells"])
        text = f"{self.scenario}: {runs} runs, {self.num_failed} failed; see .cells and .summary"
        return short_text("SweepResult", text)

    def _repr_html_(self) -> str:
        frame = self.summary
        paths = list(frame.columns[1 : frame.columns.get_loc("figure")])
        rows = []
        for _, group in frame.groupby("combination"):
            means = dict(zip(group["figure"], group["mean"], strict=True))
            settings = [group[path].iloc[0] for path in paths]
            rows.append([*settings, *(f"{means.get(name, nan):.4g}" for name in _SHOWN)])
        title = f"Sweep of {self.scenario}: {len(self.cells)} runs, {self.num_failed} failed; means"
        return table_html(title, rows, head=(*paths, *_SHOWN))


_SHOWN = ("decode_tokens_per_s", "ttft_s.p50", "tpot_s.p50", "decode_latency_s.mean")


def sweep(
    source: str | Path | Mapping[str, object] | Scenario,
    settings: Mapping[str, object] | None = None,
    *,
    output: str | Path | None = None,
    backend: Backend = "local",
    jobs: int | None = None,
    table_format: TableFormat = "parquet",
    on_progress: OnProgress | None = None,
) -> SweepResult:
    """Simulate all combinations of a sweep with all seeds.

    Parameters
    ----------
    source
        A sweep file or the content of one, see docs/sweeps.md; or, with `settings`, the scenario:
        a :class:`Scenario`, a scenario file or the name of a shipped scenario.
    settings
        The keys of a sweep file besides the scenario: ``grid`` or ``list``, ``set``, ``seeds``.
    output
        Folder that keeps every run as it ends, and the tables at the end. Runs that it holds
        already are not run again. Nothing is kept if not given.
    backend
        Backend of the runs, ``local`` or ``ray``; the results are the same.
    jobs
        Number of runs at a time; one for each core if not given.
    table_format
        Format of the tables in the folder.
    on_progress
        Called with the number of runs that are done, and of all.

    Raises
    ------
    InputError
        If anything in the sweep is wrong; nothing has been run then.
    OutputError
        If the folder cannot be used.
    KeyboardInterrupt
        By Ctrl-C; the folder keeps the runs that are done.
    """
    _check_jobs(jobs)
    todo = _load(source, settings)
    folder = None if output is None else SweepFolder(output)
    found: dict[int, Outcome] = {}
    keys = [cell.run.key for cell in todo.cells]
    if folder is not None:
        folder.start(todo)
        for number, key in enumerate(keys):
            if (summary := folder.read(key)) is not None:
                found[number] = Outcome(summary=summary)
    left = [number for number in range(len(keys)) if number not in found]
    tell = on_progress or _ignore
    tell(len(found), len(keys))
    with closing(outcomes([todo.cells[number].run for number in left], backend, jobs)) as ended:
        for index, outcome in ended:
            number = left[index]
            found[number] = outcome
            if folder is not None and outcome.summary is not None:
                folder.keep(keys[number], outcome.summary)
            tell(len(found), len(keys))
    cells = cell_table(todo, [found[number] for number in range(len(keys))])
    tables = {"cells": cells, "summary": summary_table(todo, cells)}
    if folder is not None:
        folder.write(tables, table_format)
    num_failed = sum(outcome.summary is None for outcome in found.values())
    return SweepResult(todo.name, num_failed, tables)


def _load(
    source: str | Path | Mapping[str, object] | Scenario, settings: Mapping[str, object] | None
) -> Sweep:
    if settings is not None and not isinstance(source, Mapping):
        scenario = source if isinstance(source, Scenario) else load_scenario(source)
        return scenario_sweep(scenario, settings)
    if settings is not None or isinstance(source, Scenario):
        raise InputError("sweep() takes a sweep alone, or a scenario and settings such as a grid")
    return load_sweep(source)


def _check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise InputError(f"at least 1, not {jobs}", where="jobs")


def _ignore(done: int, total: int) -> None:
    pass
