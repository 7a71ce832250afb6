"""Plans and bounds as text, and plans as files: a placement, or the scenario with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

from helixsim.display import shortened
from helixsim.planner.figures import COUNTS
from helixsim.planner.max_flow.upper_bound import Bound
from helixsim.planner.objective import MISSED_SHARE
from helixsim.planner.result import PlanResult
from helixsim.planner.served.of_placement import ServedBound
from helixsim.planner.simulated.candidates import OWN, TILES
from helixsim.scenario.files import moved_document
from helixsim.scenario.resolved import Scenario

_MOST_LINKS = 20_000
"""Most links that a file lists; a larger placement lists none, which means all that fit."""


def placement_document(result: PlanResult, scenario: Scenario) -> dict[str, Any]:
    """The document of a placement file."""
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
    """The scenario's document with overrides and the placement.

    Paths of files that it names become relative to the folder that it is written to.

    Parameters
    ----------
    result, scenario
        The plan, and the scenario with its overrides applied.
    from_folder, to_folder
        Folder of the scenario file, and of the file to be written.
    """
    document = dict(scenario.document)
    document.pop("placement", None)
    document = moved_document(document, from_folder, to_folder)
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
        how = (
            f", {scheduler.flow_split} split" if scheduler.policy in ("maxflow", "adaptive") else ""
        )
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


# -- text --------------------------------------------------------------------------------------


def plan_text(result: PlanResult) -> str:
    """A plan as lines of text: its quality, its simulated figures, and the nodes of each stage."""
    return "\n".join(_lines(result))


def _lines(result: PlanResult) -> Iterator[str]:
    yield f"method      {result.method}, objective {result.objective}; {result.seconds:.1f} s"
    bound = result.upper_bound_tokens_per_s
    quality = "no upper bound was proved"
    if result.optimal:
        quality = "no placement has more (proved)"
    elif isfinite(bound):
        quality = f"no placement has more than {bound:,.1f} (proved, gap {result.gap:.1%})"
    flow = f"{result.max_flow_tokens_per_s:,.1f} tokens/s at typical batches"
    yield f"max flow    {flow}; {quality}"
    yield f"routes      at most {result.stages} nodes"
    if result.simulated:
        yield f"simulated   {_figures_text(result.simulated)}"
        for each in (candidate for candidate in result.candidates if candidate.chosen):
            runs = "1 run" if each.seeds == 1 else f"{each.seeds} runs"
            yield f"            mean of {runs}, {each.simulated_s:g} s each"
            if each.label.startswith(TILES):
                yield f"made of     {each.label}"
        yield from _goal_lines(result, result.simulated)
        for each in result.candidates:
            if each.label == OWN and not each.chosen:
                yield f"before      {_figures_text(each.figures)}"
    if len(result.front) > 1:
        yield "front       decode tokens/s   mean decode latency   stages"
        for each in result.front:
            mark = "  <- the plan" if each.chosen else ""
            yield (
                f"            {each.figures['decode_tokens_per_s']:15,.1f}   "
                f"{each.figures['decode_latency_s.mean']:17.3f} s   {each.stages:6}{mark}"
            )
    for (start, end), names in result.stage_nodes().items():
        yield f"  [{start:3}, {end:3})  {shortened(names)}"
    if result.unused:
        yield f"unused      {shortened(result.unused)}"


def _goal_lines(result: PlanResult, figures: Mapping[str, float]) -> Iterator[str]:
    """The figure of the goal with its uncertainty, and the figures that have limits."""
    if result.goal in figures:
        is_relative = result.error is not None and result.goal not in COUNTS
        error = f" (±{result.error:.1%})" if is_relative else ""
        yield f"goal        {result.goal} {_goal_figure(result, result.goal)}{error}"
    for limit in result.limits:
        value = _goal_figure(result, limit.figure) if limit.figure in figures else "not measured"
        yield f"limit       {limit}: {value}"
    if missed := result.counted.get(MISSED_SHARE):
        yield f"missed      {missed:.1%} of requests were rejected, failed or wait much too long"


def _goal_figure(result: PlanResult, name: str) -> str:
    """A figure as it is compared, and as the run has it where missed requests change it."""
    own = result.simulated[name] if result.simulated else nan
    value = result.counted.get(name, own)
    text = f"{value:.4g}"
    return text if text == f"{own:.4g}" else f"{text} with missed requests, {own:.4g} without"


def _figures_text(figures: dict[str, float]) -> str:
    parts = [f"{figures['decode_tokens_per_s']:,.1f} decode tokens/s"]
    for name, words in (
        ("decode_latency_s.mean", "mean decode latency"),
        ("prompt_latency_s.mean", "mean prompt latency"),
    ):
        if name in figures:
            parts.append(f"{words} {figures[name]:.3f} s")
    return ", ".join(parts)


def bound_text(
    trivial: Bound,
    best: Bound,
    served: ServedBound | None,
    own: ServedBound | None,
    max_stages: int | None,
) -> str:
    """The bounds as lines of text, with the resource that limits the flow and its prices.

    Parameters
    ----------
    trivial, best
        Bounds on the maximum flow.
    served, own
        The bounds on served tokens of any placement, and of the scenario's own; None where none is
        known for the physics, or there is no placement.
    max_stages
        Most stages of a route.
    """
    lines = [
        f"trivial bound    {trivial.tokens_per_s:,.2f} tokens/s: compute of all nodes divided by "
        "the layers",
        f"proved bound     {best.tokens_per_s:,.2f} tokens/s: no placement"
        + ("" if max_stages is None else f" with at most {max_stages} stages")
        + " has a greater maximum flow",
        f"limited by       {best.limit}",
    ]
    if best.prices:
        lines.append("layers that one further node could hold at this flow, by machine type:")
        lines += [
            f"  {name:<14} {layers:.2f}"
            for name, layers in sorted(best.prices.items(), key=lambda item: -item[1])
        ]
    if best.stage_price > 0:
        lines.append(f"layers that one further stage could add: {best.stage_price:.2f}")
    lines.append(
        "A maximum flow is an estimate, for a mean request at typical batches, prompts included:\n"
        "placements can serve more."
    )
    if served is None:
        lines.append("served bound     none is known for this physics or node scheduler")
        return "\n".join(lines)
    lines += [
        f"served bound     {served.decode_tokens_per_s:,.2f} decode tokens/s "
        f"({served.output_tokens_per_s:,.2f} output tokens/s): no placement serves",
        "                 more in the long run, at best batches, of requests like the workload's",
        f"limited by       {', '.join(served.limited_by)}",
    ]
    if own is not None:
        lines.append(
            f"own placement    {own.decode_tokens_per_s:,.2f} decode tokens/s at most, limited by "
            + ", ".join(own.limited_by)
        )
    return "\n".join(lines)
