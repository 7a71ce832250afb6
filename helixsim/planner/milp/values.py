"""What a solution of the program says, in both directions: values of variables and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from helixsim.planner.milp.formulation import existing_links, pair_name
from helixsim.planner.milp.inputs import MilpInputs
from helixsim.planner.problem import Ranges

_NO_FLOW = 1e-6
"""Share of all flow below which a node counts as unused; above the solver's tolerances."""


def start_values(inputs: MilpInputs, ranges: Ranges) -> dict[str, float] | None:
    """Name every integer variable's value for a placement, for a solver to start from.

    CBC takes integers that are not named for zero, so switches are named too. Nodes that the
    placement does not use hold one layer; where alike nodes have an order, they swap.

    Returns
    -------
    dict or None
        None if the program excludes the placement: it is longer than the limit on stages.
    """
    layers = _in_order(inputs, _all_nodes(inputs, ranges))
    depth = route_depths(inputs, layers)
    if inputs.max_stages is not None and max(depth.values()) > inputs.max_stages:
        return None
    values: dict[str, float] = {}
    for node, (start, end) in layers.items():
        values[f"start_{node}"] = start
        for k in range(1, inputs.max_layers(node) + 1):
            values[f"hold_{node}_{k}"] = int(k == end - start)
    for source, target in existing_links(inputs):
        is_on = _is_on(inputs, layers, source, target)
        values[pair_name(inputs, "link", source, target)] = int(is_on)
        if inputs.max_stages is not None and inputs.num_nodes not in (source, target):
            values[f"apart_{source}_{target}"] = int(
                not is_on and layers[source][1] > layers[target][0]
            )
    return values


def ranges_of(inputs: MilpInputs, values: Mapping[str, float]) -> dict[int, tuple[int, int]]:
    """The layers of every node, from values of ``start_i`` and ``hold_i_k``.

    What is not named is zero, as in what CBC writes.

    Raises
    ------
    KeyError
        If none of a node's sizes is chosen; the number of the node.
    """
    ranges: dict[int, tuple[int, int]] = {}
    for node in range(inputs.num_nodes):
        start = round(values.get(f"start_{node}", 0.0))
        sizes = range(1, inputs.max_layers(node) + 1)
        chosen = [k for k in sizes if values.get(f"hold_{node}_{k}", 0.0) > 0.5]
        if not chosen:
            raise KeyError(node)
        ranges[node] = (start, start + chosen[0])
    return ranges


def used_nodes(inputs: MilpInputs, values: Mapping[str, float]) -> set[int]:
    """Nodes that carry flow."""
    home = inputs.num_nodes
    flow = dict.fromkeys(range(home + 1), 0.0)
    for source, target in existing_links(inputs):
        flow[target] += values.get(pair_name(inputs, "flow", source, target), 0.0)
    return {node for node in range(home) if flow[node] > _NO_FLOW * flow[home]}


def route_depths(inputs: MilpInputs, layers: Ranges) -> dict[int, int]:
    """For every node, the nodes on the longest way to it that layers and links allow."""
    depth: dict[int, int] = {}
    for node in sorted(layers, key=lambda node: layers[node][1]):
        before = (
            depth[other]
            for other in depth
            if inputs.links[other][node] > 0 and inputs.fits(layers[other], layers[node])
        )
        depth[node] = 1 + max(before, default=0)
    return depth


def _all_nodes(inputs: MilpInputs, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """Give unused nodes one layer, where no other node ends, so that no route grows by them."""
    ends = {end for _, end in ranges.values()}
    last = inputs.num_layers - 1
    spare = next((start for start in range(last, -1, -1) if start not in ends), last)
    return {node: ranges.get(node, (spare, spare + 1)) for node in range(inputs.num_nodes)}


def _in_order(inputs: MilpInputs, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """Swap the layers of alike nodes so that they come in the order of their numbers."""
    ordered = dict(ranges)
    if inputs.strengthen:
        for group in inputs.alike:
            ordered |= dict(zip(group, sorted(ranges[node] for node in group), strict=True))
    assert all(
        ordered[one][0] <= ordered[other][0]
        for group in (inputs.alike if inputs.strengthen else ())
        for one, other in pairwise(group)
    )
    return ordered


def _is_on(inputs: MilpInputs, layers: Ranges, source: int, target: int) -> bool:
    home = inputs.num_nodes
    if source == home:
        return layers[target][0] == 0
    if target == home:
        return layers[source][1] == inputs.num_layers
    return inputs.fits(layers[source], layers[target])
