"""Draw a placement, or write it as a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import ForceOption, OutputOption, SetOption
from helixsim.cli.placing import load_placed_scenario

if TYPE_CHECKING:
    from helixsim.placement.placement import Placement
    from helixsim.scenario.resolved import Scenario

_GRAPHS = (".graphml", ".json")


def show(
    file: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO|PLACEMENT",
            help="Scenario file, name of a shipped scenario, or placement file.",
        ),
    ],
    output: OutputOption,
    scenario: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO", help="Scenario with the cluster of a placement file; file or name."
        ),
    ] = None,
    overrides: SetOption = None,
    *,
    force: ForceOption = False,
) -> None:
    """Draw the layers of every node, the maximum flow, and its bottleneck.

    The suffix of the output selects the format: .png, .svg or .html, a picture; .graphml or
    .json, the graph of nodes and links with their flow.
    """
    from helixsim.output_files import check_output

    _check_suffix(output)
    check_output(output, overwrite=force)
    if output.suffix.lower() in _GRAPHS:
        _write_graph(_subject(file, scenario, overrides or []), output, force=force)
    else:
        _draw(_subject(file, scenario, overrides or []), file, output, force=force)


def _check_suffix(output: Path) -> None:
    from helixsim.errors import OutputError

    if output.suffix.lower() not in (".png", ".svg", ".html", *_GRAPHS):
        raise OutputError(
            f"{output}: the suffix selects the format: .png, .svg or .html for a "
            f"picture, {' or '.join(_GRAPHS)} for a graph"
        )


def _subject(file: str, scenario: str | None, overrides: list[str]) -> Scenario | Placement:
    """A scenario; or a placement file without a scenario for its cluster."""
    from helixsim.errors import InputError
    from helixsim.scenario.files import find_scenario
    from helixsim.scenario.load import load_scenario
    from helixsim.scenario.section_specs import PlacementFile
    from helixsim.yaml_files import read_yaml, validate

    path = find_scenario(file)
    document = read_yaml(path)
    if not (isinstance(document, dict) and document.get("kind") == "placement"):
        if scenario is not None:
            raise InputError("--scenario goes with a placement file, and this is none", file=path)
        return load_placed_scenario(str(path), overrides)
    if scenario is not None:
        # JSON is valid YAML, with any characters in the name.
        placed = f"placement.file={json.dumps(str(path.absolute()))}"
        return load_scenario(scenario, [placed, *overrides])
    if overrides:
        raise InputError("--set changes a scenario; name one with --scenario", file=path)
    return validate(PlacementFile, document, path).to_placement()


def _draw(subject: Scenario | Placement, file: str, output: Path, *, force: bool) -> None:
    from helixsim.drawing.picture import picture_of
    from helixsim.drawing.placement_figure import placement_figure
    from helixsim.drawing.save import save_drawing

    picture = picture_of(subject, Path(file).stem)
    save_drawing(placement_figure(picture), output, overwrite=force)
    for text in (*picture.caption, *picture.notes):
        typer.echo(text)


def _write_graph(subject: Scenario | Placement, output: Path, *, force: bool) -> None:
    from helixsim.drawing.picture import solve
    from helixsim.errors import InputError
    from helixsim.output_files import write_whole
    from helixsim.placement.export import graph_text, to_networkx
    from helixsim.scenario.resolved import Scenario

    if not isinstance(subject, Scenario):
        raise InputError("a graph needs the cluster; name a scenario that has it with --scenario")
    topology, flow, _ = solve(subject)
    graph = to_networkx(topology, flow)
    write_whole(output, graph_text(graph, output.suffix.lower()), overwrite=force)
