"""Values as the plain data of a scenario file, each number with its unit, exactly."""

from __future__ import annotations

from collections.abc import Callable

from helixsim.cluster import Link, Nic
from helixsim.network import LinkRule, Spread
from helixsim.units import format_bytes_per_s, format_seconds

Plain = dict[str, object]


def nic_data(nic: Nic) -> str | Plain:
    """A network interface: one bandwidth, or two if they differ."""
    if nic.inbound_bytes_per_s == nic.outbound_bytes_per_s:
        return format_bytes_per_s(nic.inbound_bytes_per_s)
    return {
        "inbound": format_bytes_per_s(nic.inbound_bytes_per_s),
        "outbound": format_bytes_per_s(nic.outbound_bytes_per_s),
    }


def link_data(link: Link) -> Plain:
    """Bandwidth and latency of a link, without its ends."""
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
