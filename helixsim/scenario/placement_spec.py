"""The keys of a placement file or of the placement section of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from helixsim.placement.placement import Placement
from helixsim.profiles.spec import Name
from helixsim.scenario.cluster_spec import Pair
from helixsim.yaml_files import FileModel

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
