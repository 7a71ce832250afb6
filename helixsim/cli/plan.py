"""Commands that choose a placement (``plan``) and bound every placement (``bound``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helixsim.cli.group import (
    EXIT_INTERRUPTED,
    ForceOption,
    ScenarioArgument,
    SetOption,
    seconds_of,
)
from helixsim.cli.progress import show_progress
from helixsim.cli.studies import BackendOption

if TYPE_CHECKING:
    from helixsim.placement.placement import Placement
    from helixsim.planner.plan_run import PlanProgress
    from helixsim.planner.result import PlanResult
    from helixsim.scenario.resolved import Scenario

_Method = Literal["optimise", "milp", "petals", "swarm", "replicas", "separate", "separate-mixed"]
_MaxStages = Annotated[int | None, typer.Option(min=1, help="Limit of the nodes of a route.")]
_KeepLinks = Annotated[
    int | None, typer.Option(min=1, help="Keep only the N fastest links from each node to others.")
]
_Solver = Annotated[
    str, typer.Option(help="Solver of linear and integer programs: CBC, HiGHS or Gurobi.")
]
_TIME_LIMIT_S = {"simulated": 300.0, "flow": 60.0}


def plan(
    file: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PLACEMENT", help="Placement file to write."),
    ] = None,
    write_scenario: Annotated[
        Path | None,
        typer.Option(metavar="SCENARIO", help="Scenario file to write, with the placement."),
    ] = None,
    method: Annotated[_Method, typer.Option(help="Search method.")] = "optimise",
    objective: Annotated[
        Literal["simulated", "flow"],
        typer.Option(help="Optimise figures of simulations, or the maximum flow."),
    ] = "simulated",
    goal: Annotated[
        str,
        typer.Option(
            help="With objective simulated: figure of the summary to optimise, e.g. 'ttft_s.p95' "
            "or 'slo.chat.attainment'; or 'cost', or 'goodput'."
        ),
    ] = "decode_tokens_per_s",
    subject_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT",
            help="With objective simulated: a limit, e.g. 'ttft_s.mean<=1.5'; may be repeated.",
        ),
    ] = None,
    max_stages: _MaxStages = None,
    keep_links: _KeepLinks = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=LAYERS",
            help="A node holds exactly these layers, e.g. 'a100-0=0-19'; may be repeated.",
        ),
    ] = None,
    ban: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=LAYERS", help="A node holds none of these layers; may be repeated."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="A node holds no layers; may be repeated."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACEMENT", help="The placement in service: the search begins there too."
        ),
    ] = None,
    move_price: Annotated[
        float,
        typer.Option(
            min=0, help="With --start-from: cost of each layer that a node must load anew."
        ),
    ] = 0.0,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop then and keep the best placement. [default: 300 s, or 60 s for flow]",
        ),
    ] = None,
    effort: Annotated[
        Literal["quick", "normal", "thorough"],
        typer.Option(help="With objective simulated: number of trials."),
    ] = "normal",
    seed: Annotated[int, typer.Option(min=0, max=2**63, help="Seed of the search.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Full runs of each of the best candidates.")
    ] = 3,
    solver: _Solver = "CBC",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Simulations at a time. [default: one for each core]")
    ] = None,
    backend: BackendOption = "local",
    overrides: SetOption = None,
    write_front: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Table of all candidates to write, with a plot beside it (.png).",
        ),
    ] = None,
    write_model: Annotated[
        Path | None, typer.Option(metavar="FILE.lp", help="Method milp: model file to write.")
    ] = None,
    write_solution: Annotated[
        Path | None, typer.Option(metavar="FILE.sol", help="Method milp: raw solution to write.")
    ] = None,
    from_solution: Annotated[
        Path | None,
        typer.Option(metavar="FILE.sol", help="Read the placement from a raw solution."),
    ] = None,
    *,
    partial_inference: Annotated[
        bool,
        typer.Option("--partial-inference", help="Requests may enter a node at any of its layers."),
    ] = False,
    same_region: Annotated[
        bool, typer.Option("--same-region", help="Requests stay in one region.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Choose which node holds which layers of the LLM."""
    import json
    from dataclasses import replace

    from helixsim.errors import InputError
    from helixsim.output_files import check_output
    from helixsim.planner import plan as planning
    from helixsim.planner.figures import names_of
    from helixsim.planner.objective import parse_objective
    from helixsim.planner.simulated.search import EFFORTS
    from helixsim.scenario.load import load_scenario

    plot = None if write_front is None else write_front.with_suffix(".png")
    outputs = [path for path in (output, write_scenario, write_front, plot) if path is not None]
    for path in outputs:
        check_output(path, overwrite=force)
    _check_distinct([*outputs, *(path for path in (write_model, write_solution) if path)])
    if write_front is not None and objective == "flow":
        raise InputError(
            "only simulated plans have a front; use --objective simulated",
            where="--write-front",
        )
    scenario = load_scenario(file, overrides or [])
    objective_figures = parse_objective(goal, subject_to or (), names_of(scenario)).figures
    with show_progress(scenario.name) as show:
        result = planning.plan(
            scenario,
            method=method,
            objective=objective,
            goal=goal,
            subject_to=subject_to or (),
            max_stages=max_stages,
            partial_inference=partial_inference,
            keep_links=keep_links,
            fix=fix or (),
            ban=ban or (),
            leave_out=leave_out or (),
            same_region=same_region,
            start_from=None if start_from is None else _placement_of(start_from, scenario),
            move_price=move_price,
            time_limit_s=_time_limit_s(time_limit, objective),
            seed=seed,
            solver=solver,
            jobs=jobs,
            backend=backend,
            effort=replace(EFFORTS[effort], num_seeds=seeds),
            model_file=write_model,
            solution_file=write_solution,
            from_solution=from_solution,
            overwrite=force,
            on_progress=lambda progress: show(
                progress.seconds, step=progress.step, figures=_figures(progress, objective_figures)
            ),
        )
    written = _write(result, scenario, file, output, write_scenario, overwrite=force)
    if write_front is not None and plot is not None:
        written += _write_front(result, scenario, write_front, plot, overwrite=force)
    if as_json:
        typer.echo(json.dumps(result.to_json([node.name for node in scenario.cluster]), indent=2))
    else:
        from helixsim.planner.documents import plan_text

        typer.echo(plan_text(result))
        for path in written:
            typer.echo(f"written: {path}")
        if objective == "simulated" and _uses_default_split(scenario):
            typer.echo(
                "hint: requests followed the published split of the flow; "
                "--set scheduler.flow_split=balanced often gives more throughput"
            )
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    if result.interrupted:
        typer.echo("interrupted: this is the best placement found so far", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)


def bound(
    file: ScenarioArgument,
    max_stages: _MaxStages = None,
    keep_links: _KeepLinks = None,
    solver: _Solver = "CBC",
    overrides: SetOption = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the bounds as JSON, and nothing else.")
    ] = False,
) -> None:
    """Prove upper bounds, on the flow of every placement and on what it can serve."""
    import json
    from contextlib import suppress
    from dataclasses import replace

    from helixsim.planner.documents import bound_text
    from helixsim.planner.feasibility import check_stages
    from helixsim.planner.max_flow.upper_bound import trivial_bound, upper_bound
    from helixsim.planner.problem import planning_problem
    from helixsim.planner.served.node_rates import UnboundedError
    from helixsim.planner.served_bound import served_bound, served_bound_of_placement
    from helixsim.scenario.load import load_scenario

    scenario = load_scenario(file, overrides or [])
    problem = planning_problem(scenario, keep_links=keep_links)
    check_stages(problem, max_stages)
    trivial = trivial_bound(problem)
    best = upper_bound(problem, max_stages=max_stages, solver=solver)
    served = own = None
    with suppress(UnboundedError):
        whole = replace(problem, partial_inference=True)
        served = served_bound(scenario, whole, max_stages=max_stages, solver=solver)
        if scenario.placement is not None:
            own = served_bound_of_placement(scenario, solver=solver)
    if not as_json:
        typer.echo(bound_text(trivial, best, served, own, max_stages))
        return
    document = {
        "trivial_bound_tokens_per_s": trivial.tokens_per_s,
        "upper_bound_tokens_per_s": best.tokens_per_s,
        "limit": best.limit,
        "layers_per_further_node": best.prices,
        "layers_per_further_stage": best.stage_price,
        "served_bound": None if served is None else served.to_json(),
        "served_bound_of_placement": None if own is None else own.to_json(),
    }
    typer.echo(json.dumps(document, indent=2))


def _placement_of(file: Path, scenario: Scenario) -> Placement:
    """The placement of a placement file, or of a scenario file, checked against the cluster."""
    from helixsim.errors import InputError
    from helixsim.placement.placement import placement_mistakes
    from helixsim.scenario.files import find_scenario
    from helixsim.scenario.load import load_scenario
    from helixsim.scenario.section_specs import PlacementFile
    from helixsim.yaml_files import read_yaml, validate

    path = find_scenario(str(file))
    document = read_yaml(path)
    if isinstance(document, dict) and document.get("kind") == "placement":
        placement = validate(PlacementFile, document, path).to_placement()
    else:
        found = load_scenario(path).placement
        if found is None:
            raise InputError("this scenario has no placement", file=path, where="placement")
        placement = found
    mistakes = placement_mistakes(placement, scenario.cluster, scenario.llm, scenario.profiles())
    if mistakes:
        where, message = mistakes[0]
        raise InputError(message, file=path, where=where)
    return placement


def _uses_default_split(scenario: Scenario) -> bool:
    """Whether requests follow the published split of the flow, and the scenario does not ask."""
    settings = scenario.document.get("scheduler")
    decided = isinstance(settings, dict) and "flow_split" in settings
    scheduler = scenario.scheduler
    follows_flow = scheduler.policy in ("maxflow", "adaptive")
    return follows_flow and scheduler.flow_split == "published" and not decided


def _check_distinct(paths: list[Path]) -> None:
    """Reject one path for two outputs before the search, not after it."""
    from helixsim.errors import OutputError

    seen = set()
    for path in paths:
        if (whole := path.resolve()) in seen:
            raise OutputError(f"{path}: is named for two outputs; name another file")
        seen.add(whole)


def _time_limit_s(text: str | None, objective: str) -> float:
    return _TIME_LIMIT_S[objective] if text is None else seconds_of(text, "--time-limit")


def _write(
    result: PlanResult,
    scenario: Scenario,
    file: str,
    output: Path | None,
    write_scenario: Path | None,
    *,
    overwrite: bool,
) -> list[Path]:
    from helixsim.output_files import write_whole
    from helixsim.planner.documents import placement_document, scenario_document
    from helixsim.scenario.files import find_scenario
    from helixsim.yaml_files import yaml_text

    written = []
    if output is not None:
        write_whole(output, yaml_text(placement_document(result, scenario)), overwrite=overwrite)
        written.append(output)
    if write_scenario is not None:
        document = scenario_document(
            result, scenario, find_scenario(file).parent, write_scenario.absolute().parent
        )
        write_whole(write_scenario, yaml_text(document), overwrite=overwrite)
        written.append(write_scenario)
    return written


def _write_front(
    result: PlanResult, scenario: Scenario, table: Path, plot: Path, *, overwrite: bool
) -> list[Path]:
    import pandas as pd

    from helixsim.drawing.front import front_figure
    from helixsim.drawing.save import save_drawing
    from helixsim.output_files import write_whole

    rows = result.rows()
    if not rows:  # stopped before the first simulation; a note says so
        return []
    write_whole(table, pd.DataFrame(rows).to_csv(index=False), overwrite=overwrite)
    longest = max(row["simulated_s"] for row in rows)
    points = [
        row for row in rows if row["simulated_s"] == longest and "decode_latency_s_mean" in row
    ]
    if not points:  # no request was completed, so there are no latencies
        return [table]
    own = [row["label"] for row in points if row["label"] == "own"]
    title = f"{scenario.name}: candidates, mean of their runs"
    save_drawing(
        front_figure(points, title=title, reference=own[0] if own else None),
        plot,
        overwrite=overwrite,
    )
    return [table, plot]


def _figures(progress: PlanProgress, names: Sequence[str]) -> str:
    """The best placement so far, by the figures of the objective, the goal's first."""
    from math import isfinite

    parts = []
    figures = progress.figures or {}
    shown = {"decode_tokens_per_s": "decode tokens/s", "decode_latency_s.mean": "s per decode"}
    if not figures:
        if progress.value > 0:
            parts.append(f"max flow {progress.value:,.1f}")
        if isfinite(progress.bound):
            parts.append(f"upper bound {progress.bound:,.1f} tokens/s")
    for name, words in shown.items():
        if name in figures:
            error = f" ±{progress.error:.1%}" if name == names[0] else ""
            parts.append(f"{figures[name]:,.4g}{error} {words}")
    others = (name for name in names if name in figures and name not in shown)
    parts.extend(f"{name} {figures[name]:,.4g}" for name in others)
    return ", ".join(parts)
