"""The command that imports operator measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helixsim.cli.group import ForceOption, OutputOption, seconds_of

DEFAULT_LATENCY = "62 us"


def import_operators(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with dense, attention and per_sequence CSV files (also .csv.gz).",
        ),
    ],
    *,
    llm: Annotated[
        str,
        typer.Option(
            metavar="CONFIG_JSON|LLM",
            help="config.json of a Llama, Qwen3 or Qwen3-MoE model, or an LLM file.",
        ),
    ],
    output: OutputOption,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the whole machine, for example '24 GB'. [default: of the GPUs, if a "
            "folder of DIR is named after a known one]",
            show_default=False,
        ),
    ] = None,
    llm_file: Annotated[
        Path | None, typer.Option(help="LLM file to write; needed with a config.json.")
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs that share each layer.")
    ] = 1,
    name: Annotated[
        str | None, typer.Option(help="Name of the machine type. [default: of the file]")
    ] = None,
    nic: Annotated[str, typer.Option(help="Bandwidth of the network interface.")] = "10 Gbit/s",
    disk: Annotated[str, typer.Option(help="Bandwidth for reading weights.")] = "2 GB/s",
    all_reduce_latency: Annotated[
        str,
        typer.Option(
            help="Time of an all-reduce with hardly any data; the default is of two GPUs over PCIe."
        ),
    ] = DEFAULT_LATENCY,
    all_reduce_bandwidth: Annotated[
        str, typer.Option(help="Bandwidth of each GPU in an all-reduce; the default is PCIe.")
    ] = "20 GB/s",
    step_gap: Annotated[
        str,
        typer.Option(help="Time between two steps in which the GPU waits; the default is vLLM's."),
    ] = "100 us",
    memory_share: Annotated[
        float | None,
        typer.Option(
            help="Usable share of the memory, for weights and KV caches. [default: 0.9, less "
            "1.25 GB of each GPU for activations]",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(help="Source of the figures. [default: DIR]", show_default=False)
    ] = "",
    force: ForceOption = False,
) -> None:
    """Convert measured times of operators to a machine file, and a config.json to an LLM file."""
    from helixsim.errors import InputError
    from helixsim.output_files import check_output, write_whole
    from helixsim.profiles import import_operators as importer
    from helixsim.scenario.import_helix import scenario_name
    from helixsim.units import Dimension, parse_quantity

    def check_positive(text: str, dimension: Dimension, option: str) -> None:
        try:
            value = parse_quantity(text, dimension)
        except InputError as error:
            raise InputError(error.message, where=option) from error
        if value == 0:
            raise InputError("must be above zero", where=option)

    outputs = [output] if llm_file is None else [output, llm_file]
    for file in outputs:
        check_output(file, overwrite=force)
    if llm_file is not None and llm_file.absolute() == output.absolute():
        raise InputError("must not be the machine file", where="--llm-file")
    if memory is None:
        memory = importer.memory_of_gpus(folder, tensor_parallel)
        if memory is None:
            raise InputError(
                f"no folder of {folder} is named after a GPU whose memory is known; give it, for "
                "example --memory '24 GB'",
                where="--memory",
            )
    if memory_share is not None and not 0 < memory_share <= 1:
        raise InputError(f"must be above 0, at most 1, not {memory_share}", where="--memory-share")
    for text, dimension, option in (
        (memory, Dimension.DATA, "--memory"),
        (nic, Dimension.BANDWIDTH, "--nic"),
        (disk, Dimension.BANDWIDTH, "--disk"),
        (all_reduce_bandwidth, Dimension.BANDWIDTH, "--all-reduce-bandwidth"),
    ):
        check_positive(text, dimension, option)
    seconds_of(all_reduce_latency, "--all-reduce-latency")
    seconds_of(step_gap, "--step-gap")
    imported = importer.import_operators(
        folder,
        llm,
        importer.ImportSettings(
            name=name or scenario_name(output),
            memory=memory,
            nic=nic,
            disk=disk,
            tensor_parallel=tensor_parallel,
            all_reduce_latency=all_reduce_latency,
            all_reduce_bandwidth=all_reduce_bandwidth,
            step_gap=step_gap,
            memory_share=memory_share,
            source=source,
        ),
        llm_name=scenario_name(llm_file or output),
    )
    if (imported.llm is None) != (llm_file is None):
        raise InputError(
            "give a file to write for the LLM of a config.json"
            if llm_file is None
            else f"{llm} is an LLM file already; leave this option out",
            where="--llm-file",
        )
    if imported.llm is not None and llm_file is not None:
        write_whole(llm_file, imported.llm, overwrite=force)
    write_whole(output, imported.machine, overwrite=force)
    typer.echo(f"written: {', '.join(map(str, reversed(outputs)))}")
