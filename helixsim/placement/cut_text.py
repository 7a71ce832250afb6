"""A minimum cut in words; names of nodes, counts and ranges of layers as texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from helixsim.placement.cut import Bounds, Cut
from helixsim.placement.topology import PlacedNode, Topology

MAX_NAMES = 8
"""Longer lists of names end in the number of the others."""


def bottleneck_text(topology: Topology, cut: Cut) -> str:
    """The maximum flow and its bottleneck, as a sentence."""
    parts = _join(_parts(topology, cut.bounds))
    return f"Max flow {cut.tokens_per_s:,.1f} tokens/s at typical batches, bound by {parts}."


def elsewhere_text(topology: Topology, others: Bounds) -> Iterator[str]:
    """Other minimum cuts, if there are any, as a sentence."""
    if others:
        yield f"As tight elsewhere, in other minimum cuts: {_join(_parts(topology, others))}."


def count_text(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def names_text(names: Sequence[str]) -> str:
    """A list of names, cut to :data:`MAX_NAMES`."""
    shown = list(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        shown.append(f"and {len(names) - MAX_NAMES} more")
    return ", ".join(shown)


def overview_text(mix: Mapping[str, int]) -> str:
    """Counts of machines by type."""
    return ", ".join(f"{count:,} x {name}" for name, count in mix.items())


def ranges_text(layers: Iterable[int]) -> str:
    """Layers as ranges: ``0-3, 7``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _parts(topology: Topology, bounds: Bounds) -> Iterator[str]:
    nodes, links = topology.nodes, topology.links
    if bounds.compute:
        names = _node_names([nodes[index] for index in bounds.compute])
        held = {
            layer
            for index in bounds.compute
            for layer in range(nodes[index].start_layer, nodes[index].end_layer)
        }
        count = count_text(len(bounds.compute), "node")
        noun = "layers" if len(held) > 1 else "layer"
        yield f"the compute of {count} at {noun} {ranges_text(held)} ({names})"
    for direction in ("inbound", "outbound"):
        if machines := getattr(bounds, direction):
            names = names_text([topology.name(index) for index in machines])
            interfaces = "network interface" + ("s" if len(machines) > 1 else "")
            yield f"the {direction} {interfaces} of {names}"
    if bounds.links:
        pairs = [(links[index].source, links[index].target) for index in bounds.links]
        names = names_text([f"{topology.name(a)} → {topology.name(b)}" for a, b in pairs])
        yield f"{count_text(len(pairs), 'link')} ({names})"


def _node_names(nodes: Sequence[PlacedNode]) -> str:
    """Names of nodes; of many, counts by type."""
    if len(nodes) <= MAX_NAMES:
        return names_text([node.name for node in nodes])
    types = [node.machine_type for node in nodes]
    return overview_text({name: types.count(name) for name in dict.fromkeys(types)})


def _join(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
