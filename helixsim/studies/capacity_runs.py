"""The runs of a search for the highest rate, with a folder that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from helixsim.backends import Backend
from helixsim.errors import SimulationError
from helixsim.studies.backends import outcomes
from helixsim.studies.folder import StudyFolder
from helixsim.studies.runs import Outcome, StudyRun


class CapacityRuns:
    """Carries out runs, or reads them from a folder.

    Parameters
    ----------
    backend, jobs
        As of :func:`helixsim.sweep`.
    output
        The folder; None to keep nothing.

    Raises
    ------
    OutputError
        If the folder holds something other than a capacity search, or cannot be written to.
    """

    def __init__(self, backend: Backend, jobs: int | None, output: str | Path | None) -> None:
        self._backend, self._jobs = backend, jobs
        self._folder = None if output is None else StudyFolder(output, "capacity")
        if self._folder is not None:
            self._folder.begin({})

    def carry_out(
        self, runs: Sequence[StudyRun], setting: str, on_progress: Callable[[int, int], None]
    ) -> list[Outcome]:
        """The outcomes of runs, in order.

        Parameters
        ----------
        runs
            What to run.
        setting
            What is the same in all of them, for errors.
        on_progress
            Called with the number of runs that are done, and of all.

        Raises
        ------
        SimulationError
            If a run fails.
        """
        found: dict[int, Outcome] = {}
        for number, run in enumerate(runs):
            if self._folder is not None and (kept := self._folder.read(run.key)) is not None:
                found[number] = Outcome(**kept)
        left = [number for number in range(len(runs)) if number not in found]
        on_progress(len(found), len(runs))
        with closing(
            outcomes([runs[number] for number in left], self._backend, self._jobs)
        ) as ended:
            for index, outcome in ended:
                run = runs[left[index]]
                if outcome.error is not None:
                    raise SimulationError(
                        f"{run.file}: with {setting} and seed {run.seed}: {outcome.error}"
                    )
                found[left[index]] = outcome
                if self._folder is not None and outcome.summary is not None:
                    kept = {
                        "summary": outcome.summary,
                        "num_arrived": outcome.num_arrived,
                        "num_finished": outcome.num_finished,
                    }
                    self._folder.keep(run.key, kept)
                on_progress(len(found), len(runs))
        return [found[number] for number in range(len(runs))]

    def keep_result(self, result: dict[str, Any]) -> None:
        """Write the result into the folder, if there is one."""
        if self._folder is not None:
            self._folder.begin({"result": result})
