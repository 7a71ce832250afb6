"""One run of a study, as plain data that can be sent to another process and back."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import HelixError, InputError
from helixsim.metrics.output import installed_version
from helixsim.metrics.result import RunResult
from helixsim.models.simulation import simulate
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.resolved import Scenario

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class StudyRun:
    """A scenario and a seed.

    Attributes
    ----------
    file
        The scenario file; names of other files are relative to its folder.
    document
        The scenario as plain data.
    digest
        Digest of the document and of the files that it names.
    seed
        The seed, in place of the document's.
    """

    file: Path
    document: Mapping[str, object]
    digest: str
    seed: int

    @property
    def key(self) -> str:
        """64 hex digits that name the result: of scenario, seed and version of helixsim."""
        parts = [_FORMAT, self.digest, self.seed, installed_version("helixsim")]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self) -> Scenario:
        """The scenario.

        Raises
        ------
        InputError
            If it cannot be loaded, or a file that it names has changed.
        """
        scenario = resolve_scenario(self.document, self.file)
        if scenario.digest != self.digest:
            raise InputError(
                "a file that this scenario names has changed since the start", file=self.file
            )
        return scenario


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes
    ----------
    summary
        Summary of the run; None if it has none.
    error
        The reason why it has none.
    num_arrived
        Requests that arrived in the window, rejected ones too.
    num_finished
        Requests that were completed in the window.
    interrupted
        Whether the run was ended by Ctrl-C; then there is neither summary nor error.
    """

    summary: dict[str, Any] | None = None
    error: str | None = None
    num_arrived: int = 0
    num_finished: int = 0
    interrupted: bool = False


def carry_out(scenario: Scenario, seed: int) -> Outcome:
    """Simulate a scenario; a :class:`HelixError` becomes part of the outcome."""
    try:
        result = simulate(scenario, seed=seed)
    except HelixError as error:
        return Outcome(error=str(error))
    if result.summary["partial"]:
        return Outcome(interrupted=True)
    return Outcome(
        summary=result.summary,
        num_arrived=_num_within(result, "arrival_s"),
        num_finished=_num_within(result, "end_s"),
    )


def _num_within(result: RunResult, column: str) -> int:
    """Count the requests for which a time lies in the window."""
    start_s, end_s = result.summary["window_start_s"], result.summary["window_end_s"]
    times = result.tables["requests"].as_dict()[column]
    assert isinstance(times, array)
    return sum(start_s <= at_s <= end_s for at_s in times)
