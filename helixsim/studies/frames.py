"""The results of a sweep as two tables: one row for each run, and statistics over seeds."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import nan

from helixsim.metrics.recorder import Columns
from helixsim.metrics.summary import figures_of
from helixsim.studies.combinations import Cell, Sweep, shown
from helixsim.studies.runs import Outcome
from helixsim.studies.student_t import mean_and_interval


def cell_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> Columns:
    """One row for each run: settings, seed, status, figures of the summary.

    Parameters
    ----------
    sweep
        The runs.
    outcomes
        Their outcomes, in the same order.
    """
    found = [figures_of(outcome.summary or {}) for outcome in outcomes]
    names = tuple(dict.fromkeys(name for each in found for name in each))
    kinds = [_kind(path, sweep.cells) for path in sweep.paths]
    table = Columns(
        ("combination", *sweep.paths, "seed", "status", "error", "warnings", *names),
        "q" + "".join(kinds) + "qsss" + "d" * len(names),
    )
    for cell, outcome, values in zip(sweep.cells, outcomes, found, strict=True):
        summary = outcome.summary
        table.add(
            cell.combination,
            *_settings(cell, sweep.paths, kinds),
            cell.run.seed,
            "failed" if summary is None else "ok",
            outcome.error,
            "; ".join(summary["warnings"]) or None if summary else None,
            *(values.get(name, nan) for name in names),
        )
    return table


def summary_table(sweep: Sweep, cells: Columns) -> Columns:
    """One row for each combination and figure: its statistics over the seeds."""
    kinds = [_kind(path, sweep.cells) for path in sweep.paths]
    table = Columns(
        ("combination", *sweep.paths, "figure", "seeds", "mean", "sd", "ci95_low", "ci95_high"),
        "q" + "".join(kinds) + "sqdddd",
    )
    columns = cells.as_dict()
    names = cells.names[cells.names.index("warnings") + 1 :]
    rows: dict[int, list[int]] = {}
    for row, cell in enumerate(sweep.cells):
        rows.setdefault(cell.combination, []).append(row)
    for combination, own in rows.items():
        settings = tuple(_settings(sweep.cells[own[0]], sweep.paths, kinds))
        for name in names:
            column = columns[name]
            assert isinstance(column, array)
            values = [column[row] for row in own if column[row] == column[row]]
            table.add(combination, *settings, name, len(values), *mean_and_interval(values))
    return table


def _kind(path: str, cells: Sequence[Cell]) -> str:
    """The type of the column of a path: whole numbers, numbers, or text."""
    values = [cell.values.get(path) for cell in cells]
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in values):
        return "q"
    if all(value is None or type(value) in (int, float) for value in values):
        return "d"
    return "s"


def _settings(cell: Cell, paths: Sequence[str], kinds: Sequence[str]) -> Iterator[object]:
    for path, kind in zip(paths, kinds, strict=True):
        value = cell.values.get(path)
        if kind == "s":
            yield shown(value) if path in cell.values else None
        else:
            yield nan if value is None else value
