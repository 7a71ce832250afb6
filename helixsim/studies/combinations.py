"""The runs of a sweep, all of them checked before the first one starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from helixsim.errors import InputError, ScenarioError
from helixsim.planner.place import place as with_placement
from helixsim.scenario.files import find_scenario, is_yaml_name
from helixsim.scenario.load import checked_document, resolve_scenario
from helixsim.scenario.overrides import Override, apply_overrides
from helixsim.scenario.plain import plain_data
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.sweep_spec import SweepSpec
from helixsim.studies.runs import StudyRun
from helixsim.yaml_files import read_yaml, validate

MAX_RUNS = 100_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep.

    Attributes
    ----------
    combination
        Number of its combination of values, from 0.
    values
        Path in the scenario -> what it is set to, for the paths that differ between combinations.
    run
        The run to carry out.
    """

    combination: int
    values: Mapping[str, Any]
    run: StudyRun


@dataclass(frozen=True, slots=True)
class Sweep:
    """All runs of a sweep.

    Attributes
    ----------
    name
        Name of the scenario.
    paths
        Paths in the scenario that differ between combinations.
    cells
        The runs, by combination, then seed.
    """

    name: str
    paths: tuple[str, ...]
    cells: tuple[Cell, ...]


def load_sweep(source: str | Path | Mapping[str, object]) -> Sweep:
    """Read a sweep and check every scenario of it.

    Parameters
    ----------
    source
        A sweep file, or what would stand in one; then names of files are relative to the
        current directory.

    Raises
    ------
    InputError
        Naming file, place and what would be right.
    """
    file = None if isinstance(source, Mapping) else Path(source)
    data = dict(source) if isinstance(source, Mapping) else read_yaml(source)
    spec = validate(SweepSpec, data, file)
    folder = Path() if file is None else file.parent
    scenario_file = _scenario_file(spec, file, folder)
    return _Checker(spec, file, folder, scenario_file, read_yaml(scenario_file)).sweep()


def scenario_sweep(scenario: Scenario, settings: Mapping[str, object]) -> Sweep:
    """A sweep over a scenario, checked like one that was read.

    Parameters
    ----------
    scenario
        The scenario to change; names of files are relative to its folder.
    settings
        The keys of a sweep file besides the scenario.

    Raises
    ------
    InputError
        As :func:`load_sweep`.
    """
    head = {"schema": 1, "kind": "sweep", "scenario": scenario.name}
    spec = validate(SweepSpec, head | cast("dict[str, object]", plain_data(settings)), None)
    return _Checker(spec, None, Path(), scenario.file, checked_document(scenario)).sweep()


def _scenario_file(spec: SweepSpec, file: Path | None, folder: Path) -> Path:
    beside = folder / spec.scenario
    is_file = is_yaml_name(spec.scenario) or beside.is_file()
    try:
        return find_scenario(beside if is_file else spec.scenario)
    except ScenarioError as error:
        raise InputError(error.message, file=file, where="scenario") from error


class _Checker:
    """Builds the runs of a sweep, and checks them."""

    def __init__(
        self,
        spec: SweepSpec,
        file: Path | None,
        folder: Path,
        scenario_file: Path,
        document: object,
    ) -> None:
        self.spec = spec
        self.file = file
        self.folder = folder
        self.scenario_file = scenario_file
        self.document = document

    def sweep(self) -> Sweep:
        combinations = list(self._combinations())
        document = self._set(self.document, self.spec.fixed, "set")
        seen: dict[str, int] = {}
        cells: list[Cell] = []
        name = ""
        for number, (place, values) in enumerate(combinations):
            text = json.dumps(sorted(values.items()), default=str)
            if text in seen:
                raise self._error(place, f"is the same as combination {seen[text]}")
            seen[text] = number
            changed = self._set(document, values, place)
            where = f"combination {number} ({_label(values)})" if values else None
            try:
                scenario = resolve_scenario(changed, self.scenario_file)
            except InputError as error:
                if where is None:
                    raise
                raise self._error(where, str(error)) from error
            if scenario.placement is None:
                scenario = with_placement(scenario)
                changed = dict(scenario.document)
            name = scenario.name
            cells += [
                Cell(number, values, StudyRun(self.scenario_file, changed, scenario.digest, seed))
                for seed in self.spec.seed_numbers(scenario.run.seed)
            ]
        paths = dict.fromkeys(path for _, values in combinations for path in values)
        return Sweep(name, tuple(paths), tuple(cells))

    def _combinations(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each combination: its place in the file, and its values."""
        spec = self.spec
        seeds = 1 if spec.seeds is None else len(spec.seed_numbers(0))
        count = 1
        if spec.combinations is not None:
            count = len(spec.combinations)
        for choices in spec.grid.values():
            count *= len(choices)
        if count * seeds > MAX_RUNS:
            raise self._error(
                None, f"{count * seeds:,} runs are more than the {MAX_RUNS:,} that a sweep may have"
            )
        if spec.combinations is not None:
            for number, values in enumerate(spec.combinations):
                yield f"list[{number}]", values
            return
        for choice in product(*spec.grid.values()):
            yield "grid", dict(zip(spec.grid, choice, strict=True))

    def _set(self, document: object, values: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401
        if not isinstance(document, Mapping) or not values:
            return document
        head = "" if self.file is None else f"{self.file}: "
        overrides = [
            Override(f"{head}{place}.{path}", tuple(path.split(".")), value)
            for path, value in values.items()
        ]
        return apply_overrides(
            document, overrides, self.scenario_file.parent, first_dir=self.folder
        )

    def _error(self, where: str | None, message: str) -> InputError:
        return InputError(message, file=self.file, where=where)


def _label(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in values.items())


def shown(value: object) -> str:
    """A value as text: texts unchanged, other values as JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value)
