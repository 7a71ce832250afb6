"""A placement: which contiguous range of layers each node holds, and which links it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
