"""The tables of docs/profiles.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from measured_times import KERNELS, OPERATORS, MeasuredStep
from roofline_errors import row

from helixsim.profiles.roofline.constants import Constants, ErrorSpec

PAGE = Path(__file__).parents[1] / "docs" / "profiles.md"

_ERRORS_HEAD = ("GPU", "measured by", "constants", "points", "median", "90 % within", "within 30 %")


def page_with(page: str, tables: dict[str, str]) -> str:
    """The page with new text between the markers of each table."""
    for name, table in tables.items():
        pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- end of figures -->)"
        page, count = re.subn(
            pattern, lambda found, text=table: f"{found[1]}{text}{found[2]}", page, flags=re.DOTALL
        )
        assert count == 1, f"docs/profiles.md has no place for the table {name}"
    return page


def errors_table(constants: Constants) -> str:
    """How far off the roofline was: by GPU and source, and of all judged points."""
    file = constants.file
    rows = [_cells(found) for found in file.errors]
    judged = ["**all judged**", "", *(f"**{cell}**" for cell in _cells(file.judged)[2:])]
    return markdown([_ERRORS_HEAD, *rows, judged])


def _cells(found: ErrorSpec) -> list[str]:
    return [
        found.gpu,
        found.source,
        found.set,
        f"{found.points}",
        f"{100 * found.median:.1f} %",
        f"{100 * found.p90:.1f} %",
        f"{100 * found.within_30:.0f} %",
    ]


def sources_table(steps: Iterable[MeasuredStep]) -> str:
    """Operator tables against aiconfigurator-core, where both measured a step."""
    by_step: dict[tuple[object, ...], dict[str, float]] = {}
    for step in steps:
        key = (step.gpu, step.llm, step.num_gpus, step.phase, step.number, step.context)
        if step.weights == "bf16" and not step.is_layer:
            kernels_s = step.seconds - step.groups.get("all_reduce", 0.0)
            by_step.setdefault(key, {})[step.source] = kernels_s
    errors: dict[tuple[object, ...], list[float]] = {}
    for key, times in by_step.items():
        if len(times) == 2:
            ratio = times[OPERATORS] / times[KERNELS]
            errors.setdefault(key[:4], []).append(ratio - 1)
    head = ("GPU", "LLM", "GPUs", "phase", "points", "mean", "median error", "90 % within")
    rows = [head]
    for key, found in errors.items():
        figures = row("", "", "", [abs(error) for error in found])
        rows.append(
            (
                *map(str, key),
                f"{len(found)}",
                f"{100 * sum(found) / len(found):+.1f} %",
                f"{100 * figures['median']:.1f} %",
                f"{100 * figures['p90']:.1f} %",
            )
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def page_text(constants: Constants, steps: Sequence[MeasuredStep]) -> str:
    """The page as it should be."""
    tables = {"errors": errors_table(constants), "sources": sources_table(steps)}
    return page_with(PAGE.read_text(encoding="utf-8"), tables)


def write_docs(constants: Constants, steps: Sequence[MeasuredStep]) -> None:
    """Update the page."""
    PAGE.write_text(page_text(constants, steps), encoding="utf-8")
