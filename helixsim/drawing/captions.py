"""Captions and labels of pictures: numbers, names, shares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from helixsim.cluster import FrontEnd, Node
from helixsim.placement.cut_text import names_text
from helixsim.scenario.scheduler_settings import SchedulerSettings

MAX_LABEL = 20
"""The most characters of a lane's label."""


def rate_text(tokens_per_s: float) -> str:
    """Tokens per second in three digits, or as a whole number."""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def common_prefix(names: Sequence[str]) -> str:
    """Common start of all names, up to a separator; empty if short."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)  # their common start is that of all names
    same = (a == b for a, b in zip(first, last, strict=False))
    prefix = re.sub(r"[^-_./:]*$", "", first[: sum(takewhile(bool, same))])
    return prefix if len(prefix) >= 6 else ""


def short_name(name: str, prefix: str = "") -> str:
    """A name without the prefix, and without its middle if it is still long."""
    name = "…" + name.removeprefix(prefix) if prefix else name
    if len(name) <= MAX_LABEL:
        return name
    half = (MAX_LABEL - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def split_text(scheduler: SchedulerSettings) -> Iterator[str]:
    """Which split of the flow is drawn, if not the published one, or that none is followed."""
    if scheduler.policy not in ("maxflow", "adaptive"):
        yield f"Requests do not follow this flow: the routing policy is {scheduler.policy}."
    elif scheduler.flow_split != "published":
        yield f"Drawn is the {scheduler.flow_split} split of the flow, which requests follow."


def front_ends_text(front_ends: Sequence[FrontEnd]) -> Iterator[str]:
    """The front ends and the shares that they have of the flow, if there are several."""
    if len(front_ends) > 1:
        names = names_text([f"{each.name} {each.share:.0%}" for each in front_ends])
        yield f"Share of each front end: {names}."


def unused_text(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Nodes that hold no layers, if there are any, as a sentence."""
    if not nodes:
        return ()
    by_type: dict[str, list[str]] = {}
    for node in nodes:
        by_type.setdefault(node.machine_type, []).append(node.name)
    listed = "; ".join(
        f"{len(names):,} x {kind} ({names_text(names)})" for kind, names in by_type.items()
    )
    return (f"Unused: {listed}.",)
