"""The keys of a generator file: settings of a generated cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helixsim.profiles.spec import Name
from helixsim.scenario.cluster_spec import MAX_NODES, NamePattern, RulesSpec
from helixsim.scenario.front_end_spec import (
    DEFAULT_REGION,
    CoordinatorEntry,
    front_end_mistakes,
    to_front_ends,
)
from helixsim.yaml_files import FileModel, located_error

Counts = Annotated[dict[Name, Annotated[int, Field(ge=1, le=MAX_NODES)]], Field(min_length=1)]
"""Machine type -> how many."""


class GeneratorSpec(FileModel):
    """Settings of a generated cluster: machines by type and count, links by rules."""

    source: str = Field(default="", description="Source of the figures.")
    description: str = ""
    coordinator: CoordinatorEntry
    machines: Counts | None = Field(
        default=None, description="Machine type -> number of machines, all in one region."
    )
    regions: Annotated[dict[Name, Counts], Field(min_length=1)] | None = Field(
        default=None, description="Region -> machine type -> number of machines."
    )
    node_name: NamePattern | None = Field(
        default=None,
        description="Pattern of the nodes' names, with {i} for the number. Default: the type in "
        "lower case, with the number.",
    )
    network: RulesSpec
    shuffle: bool = Field(
        default=False, description="Shuffle the order of the nodes, with the seed."
    )
    seed: Annotated[int, Field(ge=0, le=2**63)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.machines is None) == (self.regions is None):
            raise ValueError("give either machines or regions")
        if self.node_name is not None and "{i}" not in self.node_name:
            raise located_error("node_name", "must contain {i}, for the numbers of the nodes")
        if sum(sum(counts.values()) for counts in self.machines_by_region.values()) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} nodes")
        if mistake := next(self._mistakes(), None):
            raise located_error(*mistake)
        return self

    @property
    def machines_by_region(self) -> Mapping[str, Mapping[str, int]]:
        """Region -> machine type -> how many."""
        if self.regions is not None:
            return self.regions
        return {DEFAULT_REGION: self.machines or {}}

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        yield from front_end_mistakes(self.coordinator)
        here = (front_end.region for front_end in to_front_ends(self.coordinator))
        known = tuple(dict.fromkeys((*here, *self.machines_by_region)))
        for where, message in self.network.region_mistakes(known):
            yield f"network.{where}", message


class GeneratorFile(GeneratorSpec):
    """A generator file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["generator"]
