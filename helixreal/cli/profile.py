"""The command that measures a machine and writes its machine file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixsim.cli.group import ForceOption, OutputOption
from helixsim.cli.progress import show_progress

if TYPE_CHECKING:
    from helixsim.units import Dimension


def profile(
    *,
    llm: Annotated[Path, typer.Option(metavar="DIR", help="Model folder (Hugging Face format).")],
    output: OutputOption,
    engine: Annotated[str, typer.Option(help="Engine: torch or vllm.")] = "torch",
    name: Annotated[
        str | None, typer.Option(help="Name of the machine type. [default: the file's]")
    ] = None,
    llm_name: Annotated[
        str | None, typer.Option(help="Name of the LLM. [default: the folder's]")
    ] = None,
    llm_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the LLM file, too, to this file.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device, or several with commas between them.")
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Data type: float32, bfloat16 or float16.")
    ] = "float32",
    layers: Annotated[
        str,
        typer.Option(
            help="Numbers of layers for which KV capacity is measured, for example 1,2,4; the last "
            "is the maximum. By default, one number is measured and the others are derived."
        ),
    ] = "",
    max_batch_tokens: Annotated[int, typer.Option(min=1, max=2**20)] = 2048,
    context: Annotated[
        int, typer.Option(min=1, max=2**20, help="Context of each decode, in tokens.")
    ] = 256,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each point.")] = 5,
    kv_memory: Annotated[
        str | None,
        typer.Option(help="Memory for KV caches, for example '4 GB'. [default: free memory]"),
    ] = None,
    nic: Annotated[str, typer.Option(help="Bandwidth of the network interface.")] = "10 Gbit/s",
    disk: Annotated[str, typer.Option(help="Read bandwidth of the disk.")] = "1 GB/s",
    dummy_weights: Annotated[
        bool, typer.Option("--dummy-weights", help="Random weights; only config.json is read.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Measure this machine's time per layer and KV capacity, and write its machine file."""
    from functools import partial

    from helixreal import profiling
    from helixreal.engines import make_engine
    from helixreal.engines.model_config import read_llama_config
    from helixsim.output_files import write_whole
    from helixsim.units import Dimension

    _check_files(output, llm_file, overwrite=force)
    _quantity(nic, Dimension.BANDWIDTH, "--nic")
    _quantity(disk, Dimension.BANDWIDTH, "--disk")
    kv_memory_bytes = (
        None if kv_memory is None else int(_quantity(kv_memory, Dimension.DATA, "--kv-memory"))
    )
    name = _name(name, output.stem, "--name")
    llm_name = _name(llm_name, llm.resolve().name, "--llm-name")
    settings = profiling.ProfileSettings(
        model=llm,
        device=device,
        dtype=dtype,
        layers=_counts(layers),
        max_batch_tokens=max_batch_tokens,
        repeats=repeats,
        kv_memory_bytes=kv_memory_bytes,
        context_tokens=context,
        dummy_weights=dummy_weights,
    )
    config = read_llama_config(llm)
    with show_progress(name, "points") as show:
        measured = profiling.measure(
            partial(make_engine, engine),
            settings,
            config,
            lambda step, done, total: show(done, total, step=f"{name}: {step}"),
        )
    source = f"helixreal profile: engine {engine}, {device}, {dtype}, decodes with {context} tokens"
    texts = {
        output: profiling.machine_text(
            measured,
            name=name,
            llm_name=llm_name,
            source=source,
            memory_bytes=_memory_bytes(device),
            nic=nic,
            disk=disk,
        )
    }
    if llm_file is not None:
        texts[llm_file] = profiling.llm_text(
            config,
            name=llm_name,
            dtype=dtype,
            wire_bytes_per_token=measured.wire_bytes_per_token,
            source=f"{llm.resolve().name}/config.json",
        )
    for file, text in texts.items():
        write_whole(file, text, overwrite=force)
        typer.echo(f"wrote {file}")


def _check_files(output: Path, llm_file: Path | None, *, overwrite: bool) -> None:
    from helixsim.errors import InputError
    from helixsim.output_files import check_output

    if llm_file is not None and llm_file.absolute() == output.absolute():
        raise InputError("--output and --llm-file name the same file", file=output)
    for file in (output, llm_file):
        if file is None:
            continue
        if file.suffix not in (".yaml", ".yml"):
            raise InputError("must end in .yaml, so that scenarios can refer to it", file=file)
        check_output(file, overwrite=overwrite)


def _quantity(text: str, dimension: Dimension, option: str) -> float:
    from helixsim.errors import InputError
    from helixsim.units import parse_quantity

    try:
        value = parse_quantity(text, dimension)
    except InputError as error:
        raise InputError(error.message, where=option) from error
    if value == 0:
        raise InputError("must be above zero", where=option)
    return value


def _name(given: str | None, default: str, option: str) -> str:
    from helixreal.profiling import file_name
    from helixsim.errors import InputError

    if given is not None and file_name(given) != given:
        raise InputError(f"'{given}' is not a valid name; '{file_name(given)}' is", where=option)
    return file_name(default) if given is None else given


def _counts(text: str) -> tuple[int, ...]:
    from helixsim.errors import InputError

    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"'{text}' is not a list such as 1,2,4", where="--layers") from error


def _memory_bytes(device: str) -> int:
    """Memory of the accelerators (names with commas between them) or, for a CPU, of the machine."""
    if device.startswith("cuda"):
        import torch

        return sum(
            torch.cuda.get_device_properties(name.strip()).total_memory
            for name in device.split(",")
        )
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
