"""Values as the plain data of a scenario file, each number with its unit, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path

from helixsim.cluster import Link, LinkRule, Nic, Spread
from helixsim.placement.placement import Placement
from helixsim.units import format_bytes_per_s, format_seconds

Plain = dict[str, object]


def plain_data(value: object) -> object:
    """A value of Python code as a scenario file would have it.

    Tuples become lists, paths become texts, numpy's numbers Python's, a :class:`Placement`
    becomes its section; plain data is returned unchanged.
    """
    if isinstance(value, Placement):
        return placement_data(value)
    if isinstance(value, Mapping):
        return {key: plain_data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(inner) for inner in value]
    return _plain_scalar(value)


def _plain_scalar(value: object) -> object:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real | Decimal) and not isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    return str(value) if isinstance(value, Path) else value


def placement_data(placement: Placement) -> Plain:
    """A placement as the section of a scenario file."""
    data: Plain = {"layers": {name: list(layers) for name, layers in placement.layers.items()}}
    if placement.links is not None:
        data["links"] = [list(pair) for pair in placement.links]
    if placement.allow_overcommitted_layers:
        data["allow_overcommitted_layers"] = True
    return data


def nic_data(nic: Nic) -> str | Plain:
    """A network interface: one bandwidth, or two if they differ."""
    if nic.inbound_bytes_per_s == nic.outbound_bytes_per_s:
        return format_bytes_per_s(nic.inbound_bytes_per_s)
    return {
        "inbound": format_bytes_per_s(nic.inbound_bytes_per_s),
        "outbound": format_bytes_per_s(nic.outbound_bytes_per_s),
    }


def link_data(link: Link) -> Plain:
    """Bandwidth and latency of a link."""
    return {
        "bandwidth": format_bytes_per_s(link.bandwidth_bytes_per_s),
        "latency": format_seconds(link.latency_s),
    }


def rule_data(rule: LinkRule) -> Plain:
    """Bandwidth and latency of a rule."""
    return {
        "bandwidth": _spread_data(rule.bandwidth_bytes_per_s, format_bytes_per_s),
        "latency": _spread_data(rule.latency_s, format_seconds),
    }


def _spread_data(value: Spread, write: Callable[[float], str]) -> str | Plain:
    if value.spread == 0:
        return write(value.mean)
    return {"mean": write(value.mean), "spread": write(value.spread)}
