"""The contents of a report, for the template that arranges them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helixsim.errors import InputError
from helixsim.metrics.result import RunResult
from helixsim.metrics.sample import PERCENTILES
from helixsim.plots.pictures import figure_bytes, pictures_of
from helixsim.scenario.files import find_scenario
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario
from helixsim.yaml_files import yaml_text

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_RATES = (
    ("decode_tokens_per_s", "Decode throughput", "tokens/s"),
    ("total_tokens_per_s", "Total throughput, prompts included", "tokens/s"),
    ("requests_per_s", "Requests ended", "1/s"),
    ("max_flow_tokens_per_s", "Maximum flow, estimated at typical batches", "tokens/s"),
)
_LATENCIES = (
    ("ttft_s", "Time to first token"),
    ("tpot_s", "Time per output token"),
    ("e2e_s", "End to end"),
    ("prompt_latency_s", "Prompt pass"),
    ("decode_latency_s", "Decode pass"),
)
_GROUP_LATENCIES = (("ttft_s", "time to first token"), ("tpot_s", "time per output token"))
_GROUPS = (("classes", "Class of users"), ("front_ends", "Front end"))
_TITLES = {
    "latencies": "Latencies of requests",
    "throughput": "Throughput and load",
    "utilisation": "Utilisation of nodes",
    "kv-use": "KV caches",
    "queues": "Queues",
    "congestion": "Links",
    "node-timeline": "Steps of the nodes",
    "comparison": "Comparison",
}


def report_page(runs: Mapping[str, RunResult], scenario: str | None = None) -> str:
    """The page as HTML, with styles and pictures inline.

    Parameters
    ----------
    runs
        Name -> results; several are compared first.
    scenario
        File of the scenario of all runs, for the picture of its placement. Without it, the
        scenario of each run is looked for beside its results, in the current directory, and
        among the shipped ones.

    Raises
    ------
    InputError
        If `scenario` is not the scenario of a run.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    pictures = [
        {
            "name": name,
            "title": _picture_title(name),
            "data": _data_url(figure_bytes(figure, "png")),
        }
        for name, figure in pictures_of(runs)
    ]
    return template.render(
        title=" and ".join(runs) if len(runs) < 3 else f"{len(runs)} runs",
        runs=[_run(name, result, scenario) for name, result in runs.items()],
        rates=_RATES,
        latencies=_LATENCIES,
        group_latencies=_GROUP_LATENCIES,
        columns=["mean", *(f"p{p}" for p in PERCENTILES)],
        pictures=pictures,
    )


def _run(name: str, result: RunResult, scenario: str | None) -> dict[str, Any]:
    placement = _placement(result, scenario)
    manifest = {key: value for key, value in result.manifest.items() if key != "scenario"}
    document = result.manifest.get("scenario", {})
    return {
        "name": name,
        "summary": result.summary,
        "slo": result.summary.get("slo") or {},
        "groups": [
            (title, result.summary[key]) for key, title in _GROUPS if result.summary.get(key)
        ],
        "cost": result.summary.get("cost"),
        "energy": result.summary.get("energy"),
        "placement": placement,
        "scenario": yaml_text(document),
        "manifest": json.dumps(manifest, indent=2),
    }


def _picture_title(name: str) -> str:
    for key, title in _TITLES.items():
        if name == key:
            return title
        if name.endswith(f"-{key}"):
            return f"{title}: {name.removesuffix(f'-{key}')}"
    return name


def _placement(result: RunResult, scenario: str | None) -> str | None:
    """The picture of the placement as SVG, if the scenario can be found."""
    from helixsim.drawing.picture import placement_picture
    from helixsim.drawing.placement_figure import placement_figure
    from helixsim.drawing.save import drawing_bytes

    found = _scenario(result, scenario)
    if found is None or found.placement is None:
        return None
    drawing = placement_figure(placement_picture(found))
    return _data_url(drawing_bytes(drawing, ".svg"), "svg+xml")


def _scenario(result: RunResult, file: str | None) -> Scenario | None:
    if file is None:
        try:
            return result.scenario
        except InputError:
            return None
    load_scenario(file)  # its message says what is wrong with the file
    found = result.scenario_from(find_scenario(file).parent)
    if found is None:
        raise InputError(
            f"is not what {result.folder or result.name} was made of; name the scenario that was "
            "run",
            file=file,
        )
    return found


def _data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
