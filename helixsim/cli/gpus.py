"""The command that shows the catalogue of GPUs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from helixsim.hardware.gpu import Gpu

_COLUMNS = ("GPU", "memory GB", "GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "linked by", "W", "$/h")


def gpus(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="GPU", help="Name of a GPU, or the file of your own.", show_default=False
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")] = False,
) -> None:
    """List the GPUs that are known by their data sheets, or one of them with its source."""
    from dataclasses import asdict

    from helixsim.hardware.catalogue import load_gpu, shipped_gpus

    if name is None:
        known = shipped_gpus()
        typer.echo(json.dumps([asdict(gpu) for gpu in known], indent=1) if as_json else _table())
        return
    gpu = load_gpu(name)
    if as_json:
        typer.echo(json.dumps(asdict(gpu), indent=1))
        return
    for title, text in _rows(gpu):
        typer.echo(f"{title:<14} {text}")


def _table() -> str:
    from helixsim.hardware.catalogue import price_year, shipped_gpus

    rows = [_COLUMNS, *(_cells(gpu) for gpu in shipped_gpus())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    note = (
        f"$/h: order of magnitude of on-demand prices in {price_year()}. GPUs without bf16 compute "
        "in fp16. Sources: helixsim gpus GPU"
    )
    return "\n".join([*lines, note])


def _cells(gpu: Gpu) -> tuple[str, ...]:
    peaks = gpu.flop_per_s
    return (
        gpu.name,
        f"{gpu.memory_bytes / 1e9:.4g}",
        f"{gpu.memory_bytes_per_s / 1e9:.4g}",
        f"{(peaks.get('bf16') or peaks['fp16']) / 1e12:.4g}",
        _or_none(peaks.get("fp8"), 1e12),
        gpu.interconnect,
        _or_none(gpu.power_w),
        _or_none(gpu.dollars_per_hour),
    )


def _rows(gpu: Gpu) -> list[tuple[str, str]]:
    from helixsim.hardware.catalogue import price_year

    linked = f"{gpu.interconnect}, {gpu.interconnect_bytes_per_s / 1e9:.4g} GB/s each way"
    rows: list[tuple[str, Any]] = [
        ("GPU", gpu.name if gpu.title == gpu.name else f"{gpu.name} ({gpu.title})"),
        ("generation", gpu.generation),
        ("memory", f"{gpu.memory_bytes / 1e9:.4g} GB, {gpu.memory_bytes_per_s / 1e9:.4g} GB/s"),
        *((f"peak {form}", f"{peak / 1e12:.4g} TFLOP/s") for form, peak in gpu.flop_per_s.items()),
        ("linked by", linked),
    ]
    if gpu.power_w is not None:
        rows.append(("power", f"{gpu.power_w:g} W"))
    if gpu.dollars_per_hour is not None:
        price = f"${gpu.dollars_per_hour:g} an hour (order of magnitude, {price_year()})"
        rows.append(("usual price", price))
    return [*rows, ("source", gpu.source or "not given")]


def _or_none(value: float | None, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.4g}"
