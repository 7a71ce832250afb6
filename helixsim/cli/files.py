"""Commands that write files for scenarios, or print their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helixsim.cli.group import ForceOption, OutputOption


def generate_cluster(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Generator file.")],
    output: OutputOption,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63, help="Replaces the seed in SPEC.")
    ] = None,
    *,
    explicit_links: Annotated[
        bool, typer.Option("--explicit-links", help="Write every link instead of rules.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Generate a cluster: machines by type and count, links by rules."""
    from helixsim.output_files import check_output, write_whole
    from helixsim.scenario.cluster_generator import cluster_file

    check_output(output, overwrite=force)
    text = cluster_file(spec, seed=seed, explicit_links=explicit_links)
    write_whole(output, text, overwrite=force)


def import_helix(
    *,
    cluster: Annotated[Path, typer.Option(help="Ini file of all machines and links.")],
    machines: Annotated[Path, typer.Option(help="Ini file of the machine types' hardware.")],
    solution: Annotated[Path, typer.Option(help="Ini file of the layers that nodes hold.")],
    links: Annotated[Path, typer.Option(help="Ini file of the nodes and links in use.")],
    llm: Annotated[str, typer.Option(help="Name of a shipped LLM.")],
    output: OutputOption,
    force: ForceOption = False,
) -> None:
    """Convert files of the published Helix artifact to a scenario."""
    from helixsim.output_files import check_output, write_whole
    from helixsim.scenario import import_helix as importer
    from helixsim.yaml_files import yaml_text

    check_output(output, overwrite=force)
    imported = importer.import_helix(
        cluster=cluster,
        machines=machines,
        solution=solution,
        links=links,
        llm=llm,
        name=importer.scenario_name(output),
    )
    write_whole(output, yaml_text(imported.document), overwrite=force)
    if imported.overcommitted:
        typer.echo(
            f"note: {', '.join(imported.overcommitted)} hold more layers than their machine types "
            "should: a run needs --set placement.allow_overcommitted_layers=true",
            err=True,
        )


def generate_trace(
    output: OutputOption,
    arrivals: Annotated[
        str,
        typer.Option(help="azure-conversation, azure-code, poisson or gamma."),
    ] = "azure-conversation",
    lengths: Annotated[
        str, typer.Option(help="azure-conversation, azure-code, alpaca, sharegpt, or a file.")
    ] = "azure-conversation",
    rate: Annotated[float, typer.Option(help="Requests per second on average.")] = 1.0,
    cv: Annotated[
        float, typer.Option(help="Coefficient of variation of the gaps, for gamma.")
    ] = 2.0,
    duration: Annotated[str, typer.Option(help="Duration, for example '10 min'.")] = "10 min",
    seed: Annotated[int, typer.Option(min=0, max=2**63)] = 0,
    *,
    force: ForceOption = False,
) -> None:
    """Generate a trace: arrivals and lengths, from built-in models or files."""
    from random import Random

    from helixsim import traces
    from helixsim.errors import InputError
    from helixsim.output_files import check_output
    from helixsim.units import seconds

    check_output(output, overwrite=force)
    rng = Random(seed)
    duration_s = seconds(duration)
    if arrivals == "poisson":
        times = traces.poisson(rate, rng)
    elif arrivals == "gamma":
        times = traces.gamma(rate, cv, rng)
    elif arrivals in traces.ARRIVAL_PATTERNS:
        times = traces.arrival_pattern(arrivals).arrivals(rng, rate, duration_s)
    else:
        known = ", ".join(("poisson", "gamma", *traces.ARRIVAL_PATTERNS))
        raise InputError(f"--arrivals '{arrivals}': there are {known}")
    source = (
        traces.length_model(lengths)
        if lengths in traces.length_models()
        else traces.read_lengths(lengths)
    )
    trace = traces.generate_trace(times, source, duration_s, rng)
    traces.write_trace(trace, output)
    for note in source.notes if isinstance(source, traces.Lengths) else ():
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{len(trace)} requests, {trace.rate_per_s:.3f} a second, in {output}")


def schema(
    kind: Annotated[
        str,
        typer.Option(
            help="scenario, cluster, generator, placement, llm, machine, gpu, engine or sweep."
        ),
    ] = "scenario",
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    import json

    from helixsim.scenario.schema import json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2))
