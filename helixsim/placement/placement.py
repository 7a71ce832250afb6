"""A placement: which contiguous range of layers each node holds, and which links it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helixsim.display import placement_image, placement_plot, short_text, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Placement:
    """Node -> ``[start_layer, end_layer)``, and the links that requests may take.

    Attributes
    ----------
    layers
        For every node in use, the half-open range of its layers. Other nodes of the cluster hold
        no layers.
    links
        Ordered pairs (source, target) that requests may take, ``coordinator`` at either end
        included; their order breaks ties in routing. None for all links of the cluster that fit
        the layers.
    allow_overcommitted_layers
        Accept nodes with more layers than ``max_layers`` of their machine type, as in the
        published separate pipelines.
    """

    layers: Mapping[str, tuple[int, int]]
    links: tuple[tuple[str, str], ...] | None = None
    allow_overcommitted_layers: bool = False

    def plot(self) -> Figure:
        """Draw the layers of every node; ``scenario.plot()`` draws the flow as well."""
        return placement_plot(self)

    def __repr__(self) -> str:
        ranges = ", ".join(
            f"{name} {start}-{end - 1}" for name, (start, end) in self.layers.items()
        )
        return short_text("Placement", f"of {len(self.layers)} nodes: {ranges}")

    def _repr_html_(self) -> str:
        rows = [(name, start, end - 1) for name, (start, end) in self.layers.items()]
        return table_html(
            f"Placement of {len(rows)} nodes",
            rows,
            head=("node", "first layer", "last layer"),
            picture=placement_image(self),
        )
