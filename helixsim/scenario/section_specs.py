"""Models of the section `faults` of a scenario: nodes that fail during a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helixsim.cluster import Cluster
from helixsim.placement.placement import Placement
from helixsim.profiles.machine import LLM
from helixsim.profiles.spec import Name
from helixsim.scenario.cluster_spec import Pair
from helixsim.scenario.resolved import Fault, Faults, Slo
from helixsim.yaml_files import FileModel, Seconds, did_you_mean


class FaultSpec(FileModel):
    """A node that fails and may recover."""

    node: Name = Field(description="The node that fails; it must hold layers.")
    at: Annotated[Seconds, Field(le=1e7)] = Field(
        description="Time of the failure, from the start of load generation."
    )
    duration: Annotated[Seconds, Field(gt=0, le=1e7)] | None = Field(
        default=None,
        description="Time from the failure until the node restarts and loads "
        "its layers. Default: it stays down.",
    )


class FaultsSpec(FileModel):
    """Nodes that fail, and the time until a failure is detected."""

    detection: Annotated[Seconds, Field(le=1e7)] = Field(
        default=3.0, description="Time from a failure until the coordinator detects it."
    )
    events: Annotated[tuple[FaultSpec, ...], Field(strict=False)] = Field(
        default=(), description="The failures of nodes."
    )

    def to_faults(self) -> Faults:
        """Turn it into a value."""
        return Faults(
            detection_s=self.detection,
            events=tuple(Fault(one.node, one.at, one.duration) for one in self.events),
        )


def fault_mistakes(
    faults: Faults, cluster: Cluster, placement: Placement | None, llm: LLM
) -> Iterator[tuple[str, str]]:
    """Find errors in faults: places such as ``events[2].node``, and messages."""
    nodes = {node.name: node for node in cluster}
    back_s: dict[str, float] = {}
    order = sorted(range(len(faults.events)), key=lambda index: faults.events[index].at_s)
    for index in order:
        fault, where = faults.events[index], f"events[{index}]"
        if fault.node not in nodes:
            yield f"{where}.node", f"no node '{fault.node}'; {did_you_mean(fault.node, nodes)}"
            continue
        if placement is not None and fault.node not in placement.layers:
            yield f"{where}.node", f"{fault.node} holds no layers, so its failure has no effect"
            continue
        if fault.at_s < (until := back_s.get(fault.node, 0.0)):
            yield f"{where}.at", _still_down(fault.node, until)
        start, end = (0, 0) if placement is None else placement.layers[fault.node]
        loading_s = (end - start) * llm.layer_bytes / nodes[fault.node].disk_bytes_per_s
        duration_s = inf if fault.duration_s is None else fault.duration_s
        back_s[fault.node] = fault.at_s + duration_s + loading_s


def _still_down(node: str, until_s: float) -> str:
    if until_s == inf:
        return f"{node} is still down: its previous fault has no duration"
    return (
        f"{node} is still down at that time; it is back, with its layers loaded, at {until_s:g} s"
    )


_Limit = Annotated[Seconds, Field(gt=0, le=1e7)]

Price = Annotated[float, Field(ge=0, le=1e6)]
"""Dollars per hour of one machine."""

Watts = Annotated[float, Field(ge=0, le=1e9)]
"""Power of one machine."""


class SloSpec(FileModel):
    """Latency limits of requests, and the share that must be within them."""

    ttft: _Limit | None = Field(
        default=None, description="Longest time to the first token, from arrival."
    )
    tpot: _Limit | None = Field(
        default=None, description="Longest mean time per output token after the first."
    )
    e2e: _Limit | None = Field(
        default=None, description="Longest time from arrival to the last token."
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the requests due that must meet all limits; if given, results "
        "state whether it was reached.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("give at least one limit: ttft, tpot or e2e, such as ttft: 5 s")
        return self


def to_slos(classes: Mapping[str, SloSpec]) -> tuple[Slo, ...]:
    """Turn the section into values, in order of their names."""
    return tuple(
        Slo(name=name, ttft_s=spec.ttft, tpot_s=spec.tpot, e2e_s=spec.e2e, share=spec.share)
        for name, spec in sorted(classes.items())
    )


LayerRange = Annotated[tuple[int, int], Field(strict=False)]
"""First layer, and the layer after the last."""


class PlacementSpec(FileModel):
    """The layers of every node."""

    source: str = Field(default="", description="Source of the data.")
    description: str = ""
    layers: Annotated[dict[Name, LayerRange], Field(min_length=1)] = Field(
        description="Node -> [first layer, layer after the last]."
    )
    links: Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Links that requests may take. Default: all links that fit the layers. "
        "Their order breaks ties.",
    )
    allow_overcommitted_layers: bool = Field(
        default=False, description="Accept nodes with more layers than `max_layers` of their type."
    )

    def to_placement(self) -> Placement:
        """Turn it into a value."""
        return Placement(
            layers=self.layers,
            links=self.links,
            allow_overcommitted_layers=self.allow_overcommitted_layers,
        )


class PlacementFile(PlacementSpec):
    """A placement file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["placement"]
