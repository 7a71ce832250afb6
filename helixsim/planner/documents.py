"""Plans as files: a placement, or the scenario with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helixsim.planner.result import PlanResult
from helixsim.scenario.files import named_files, replace_at
from helixsim.scenario.resolved import Scenario

_MOST_LINKS = 20_000
"""So many links are written; of a larger placement, none, which means all that fit."""


def placement_document(result: PlanResult, scenario: Scenario) -> dict[str, Any]:
    """A placement file."""
    return {
        "schema": 1,
        "kind": "placement",
        "source": f"helixsim plan {scenario.name}, {result.method}, {result.objective}",
        "description": _description(result, scenario),
        **_body(result),
    }


def scenario_document(
    result: PlanResult, scenario: Scenario, from_folder: Path, to_folder: Path
) -> dict[str, Any]:
    """The scenario, overrides applied, with the placement in it.

    Files that it names are named as seen from the folder that it is written to.
    """
    document: Any = dict(scenario.document)
    document.pop("placement", None)
    for place, name in list(named_files(document)):
        if not Path(name).is_absolute():
            path = os.path.relpath((from_folder / name).resolve(), to_folder.resolve())
            document = replace_at(document, place, Path(path).as_posix())
    placed: dict[str, Any] = {}
    for key, value in document.items():
        placed[key] = value
        if key == "cluster":
            placed["placement"] = {
                "source": f"helixsim plan, {result.method}, {result.objective}",
                "description": _description(result, scenario),
                **_body(result),
            }
    return placed


def _description(result: PlanResult, scenario: Scenario) -> str:
    text = f"{scenario.llm.name}; max flow {result.max_flow_tokens_per_s:.4f} tokens/s"
    if result.simulated and "decode_tokens_per_s" in result.simulated:
        scheduler = scenario.scheduler
        how = f", {scheduler.flow_split} split" if scheduler.policy == "maxflow" else ""
        text += (
            f"; {result.simulated['decode_tokens_per_s']:.1f} decode tokens/s simulated with "
            f"{scheduler.policy}{how}"
        )
    return text


def _body(result: PlanResult) -> dict[str, Any]:
    placement = result.placement
    body: dict[str, Any] = {"layers": {name: list(span) for name, span in placement.layers.items()}}
    if placement.links is not None and len(placement.links) <= _MOST_LINKS:
        body["links"] = [list(pair) for pair in placement.links]
    if placement.allow_overcommitted_layers:
        body["allow_overcommitted_layers"] = True
    return body
