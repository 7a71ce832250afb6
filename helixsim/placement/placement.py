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
        For every node that is used, the half-open range of layers it holds. A node of the
        cluster that is not named holds nothing.
    links
        Ordered pairs (source, target) that requests may take, ``coordinator`` at either end
        included; their order breaks ties in scheduling. None means: every link of the cluster
        that fits the layers.
    allow_overcommitted_layers
        Accept nodes that hold more layers than their machine type should (the published
        separate pipelines do).
    """

    layers: Mapping[str, tuple[int, int]]
    links: tuple[tuple[str, str], ...] | None = None
    allow_overcommitted_layers: bool = False
