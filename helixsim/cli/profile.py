"""The command that writes machine files for any GPU and LLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import ForceOption, OutputOption

if TYPE_CHECKING:
    from helixsim.profiles.machine import LLM, MachineType
    from helixsim.profiles.sources.source import SourcedTables


def profile(
    *,
    llm: Annotated[
        str,
        typer.Option(
            metavar="NAME|CONFIG_JSON", help="Name of a shipped configuration, or a config.json."
        ),
    ],
    gpu: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Name of a GPU of the catalogue, or its file.")
    ],
    output: OutputOption,
    gpus: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs of the machine; they share each layer.")
    ] = 1,
    spread_experts: Annotated[
        bool, typer.Option("--spread-experts", help="Each GPU holds whole experts.")
    ] = False,
    source: Annotated[
        str,
        typer.Option(
            metavar="auto|measured|roofline|tables:DIR",
            help="Where times come from: kernels that others measured, the data sheet, a folder of "
            "your measurements; auto takes measured ones where there are any.",
        ),
    ] = "auto",
    weights: Annotated[
        str | None, typer.Option(help="Number format of the weights, such as fp8.")
    ] = None,
    kv: Annotated[
        str | None, typer.Option(help="Number format of the KV cache, such as fp8.")
    ] = None,
    llm_file: Annotated[
        Path | None, typer.Option(help="LLM file to write, too; its name is the LLM's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the machine type. [default: of the file]")
    ] = None,
    nic: Annotated[str, typer.Option(help="Bandwidth of the network interface.")] = "10 Gbit/s",
    disk: Annotated[str, typer.Option(help="Bandwidth for reading weights.")] = "2 GB/s",
    memory_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Usable share of the memory, for weights and KV caches. [default: as vLLM]",
        ),
    ] = None,
    all_reduce_latency: Annotated[
        str | None,
        typer.Option(
            help="Time of an all-reduce of your machine with hardly any data, if you know it."
        ),
    ] = None,
    all_reduce_bandwidth: Annotated[
        str | None, typer.Option(help="Bandwidth of each GPU in an all-reduce, if you know it.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a machine file for a GPU and an LLM, from what is known of them."""
    from helixsim.errors import InputError
    from helixsim.hardware.catalogue import load_gpu
    from helixsim.hardware.gpu import GpuMachine
    from helixsim.llms.read import read_architecture
    from helixsim.output_files import check_output, write_whole
    from helixsim.profiles.llm_file import llm_of, llm_text
    from helixsim.profiles.machine_documents import facts_of, machine_document
    from helixsim.profiles.sources.all_reduce import with_all_reduce
    from helixsim.profiles.sources.choice import profile_source
    from helixsim.profiles.spec import MachineSpec
    from helixsim.scenario.import_helix import scenario_name
    from helixsim.yaml_files import parse_yaml, validate, yaml_text

    if llm_file is not None and llm_file.absolute() == output.absolute():
        raise InputError("must not be the machine file", where="--llm-file")
    for file in (output, llm_file):
        if file is not None:
            check_output(file, overwrite=force)
    llm_name = None if llm_file is None else scenario_name(llm_file)
    architecture = read_architecture(llm, name=llm_name, weights=weights, kv=kv)
    if spread_experts and not architecture.has_experts:
        raise InputError(f"{architecture.name} has no experts", where="--spread-experts")
    machine = GpuMachine(load_gpu(gpu), gpus, spread_experts)
    sourced = profile_source(source)(architecture, machine)
    sourced = with_all_reduce(sourced, all_reduce_latency, all_reduce_bandwidth)
    own = {} if memory_share is None else {"memory_share": memory_share}
    facts = facts_of(
        machine, architecture, name=name or scenario_name(output), nic=nic, disk=disk, **own
    )
    value = llm_of(architecture)
    text = yaml_text(machine_document(value, facts, sourced))
    spec = validate(MachineSpec, parse_yaml(text, "machine file"), None)
    machine_type = spec.to_machine_type({value.name: value})
    if llm_file is not None:
        write_whole(llm_file, llm_text(architecture), overwrite=force)
    write_whole(output, text, overwrite=force)
    typer.echo("\n".join(_report(value, machine_type, sourced)))
    written = [file for file in (llm_file, output) if file is not None]
    typer.echo(f"written: {', '.join(map(str, written))}")


def _report(llm: LLM, machine_type: MachineType, sourced: SourcedTables) -> list[str]:
    """Lines: times of steps, what fits, and what the figures stand on."""
    from helixsim.profiles.sources.trust import error_statement
    from helixsim.profiles.whole_steps import WholeStep, kernels_s

    steps = {
        "prefill of 512 tokens": WholeStep(chunk=512),
        "prefill of 2,048 tokens": WholeStep(chunk=2048),
        "1 decode at 1,024 tokens": WholeStep(decodes=1, decode_context=1024),
        "32 decodes at 1,024": WholeStep(decodes=32, decode_context=1024),
        "128 decodes at 1,024": WholeStep(decodes=128, decode_context=1024),
    }
    profile = machine_type.profiles[llm.name]
    which = f"all {llm.num_layers} layers"
    if profile.max_layers < llm.num_layers:
        which = f"times of {which}; {profile.max_layers} fit"
    lines = [f"{llm.name} on {machine_type.name}, {which}:"]
    for title, step in steps.items():
        seconds = kernels_s(sourced.tables, llm.num_layers, llm.activation_bytes_per_token, step)
        lines.append(f"  {title:<26}{1000 * seconds:>10.1f} ms")
    lines.append(f"  {'layers that fit':<26}{profile.max_layers:>10,}")
    tokens = profile.capacities[profile.max_layers].kv_token_layers // profile.max_layers
    lines.append(f"  {'KV cache beside them':<26}{tokens:>10,} tokens")
    lines.append(f"figures: {sourced.source}")
    if sourced.note:
        lines.append(f"note: {sourced.note}")
    statement = error_statement(sourced.kind)
    if statement.partition(": ")[2] not in sourced.source:
        lines.append(f"how far off: {statement}")
    return lines
