"""Figures of each class of users and of each front end, from the table of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helixsim.metrics.attainment import attainments
from helixsim.metrics.recorder import Columns
from helixsim.metrics.sample import Sample

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario, Slo


def class_figures(
    scenario: Scenario, requests: Columns, start_s: float, end_s: float
) -> dict[str, dict[str, Any]]:
    """The part ``classes`` of a summary; see docs/results.md.

    Parameters
    ----------
    scenario
        The scenario, with classes of users.
    requests
        The table of requests.
    start_s, end_s
        The measured window, both ends included.
    """
    names = scenario.workload.class_names
    slos = {
        name: [slo for slo in scenario.slos if slo.name == name or slo.name not in names]
        for name in names
    }
    return _of_groups("class", slos, scenario, requests, start_s, end_s)


def front_end_figures(
    scenario: Scenario, requests: Columns, start_s: float, end_s: float
) -> dict[str, dict[str, Any]]:
    """The part ``front_ends`` of a summary, of several; parameters as of :func:`class_figures`."""
    slos = dict.fromkeys(scenario.cluster.front_end_names, scenario.slos)
    return _of_groups("front_end", slos, scenario, requests, start_s, end_s)


def _of_groups(
    column: str,
    slos: Mapping[str, Sequence[Slo]],
    scenario: Scenario,
    requests: Columns,
    start_s: float,
    end_s: float,
) -> dict[str, dict[str, Any]]:
    """Figures of the requests with each value of a column, and of its SLOs."""
    classes = scenario.workload.class_names
    found = {}
    for name, own_slos in slos.items():
        rows = _rows_of(requests, column, name)
        found[name] = _figures(rows, start_s, end_s) | {
            "slo": attainments(own_slos, rows, start_s, end_s, classes)
        }
    return found


def _rows_of(requests: Columns, column: str, value: str) -> Columns:
    rows = Columns(requests.names, requests.types)
    place = requests.names.index(column)
    for row in zip(*requests.values, strict=True):
        if row[place] == value:
            rows.add(*row)
    return rows


def _figures(rows: Columns, start_s: float, end_s: float) -> dict[str, Any]:
    table: dict[str, Sequence[Any]] = dict(rows.as_dict())
    kinds = Counter(status.partition(":")[0] for status in table["status"])
    samples = {name: Sample() for name in ("ttft_s", "tpot_s", "e2e_s")}
    for number in range(len(rows)):
        if start_s <= table["first_token_s"][number] <= end_s:
            samples["ttft_s"].append(table["ttft_s"][number])
        if start_s <= table["end_s"][number] <= end_s:
            samples["e2e_s"].append(table["e2e_s"][number])
            if table["decode_tokens"][number]:
                samples["tpot_s"].append(table["tpot_s"][number])
    return {
        "requests": {
            "arrived": len(rows),
            "completed": kinds["completed"],
            "rejected": kinds["rejected"],
            "failed": kinds["failed"],
            "cancelled": kinds["cancelled"],
            "in_flight": kinds["in flight"],
            "waiting": kinds["waiting"],
        },
        **{name: sample.statistics() for name, sample in samples.items()},
    }
