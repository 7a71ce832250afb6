"""The limits of the nodes as routing policies read them: what a request may be at most."""

from __future__ import annotations

from dataclasses import replace

from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import PlacedNode, Topology
from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.profiles.machine import Capacity

_UNLIMITED = 2**53


def with_kv_tokens(topology: Topology, kv_tokens: int | None) -> Topology:
    """The topology with a measured KV capacity on every node, in tokens on all of its layers."""
    if kv_tokens is None:
        return topology
    nodes = tuple(
        replace(
            node,
            capacity=replace(node.capacity, kv_token_layers=kv_tokens * node.num_layers),
            own_kv_token_layers=kv_tokens * node.num_layers,
        )
        for node in topology.nodes
    )
    return replace(topology, nodes=nodes)


def admission_topology(
    topology: Topology, engine: EngineCosts, *, counts_kv: bool, loops: bool
) -> Topology:
    """The topology with the limits that requests are admitted by.

    Where nodes count their KV blocks, a request that fits into none of them by itself can never
    run, and is refused at once. Where decodes loop, steps are limited by the engine, and a prefill
    may be of any length: it is split.
    """
    if not counts_kv:
        return topology
    nodes = tuple(
        replace(node, capacity=_limits(topology, node, engine, loops=loops))
        for node in topology.nodes
    )
    return replace(topology, nodes=nodes)


def _limits(topology: Topology, node: PlacedNode, engine: EngineCosts, *, loops: bool) -> Capacity:
    capacity = node.capacity
    # A request that enters late needs the fewest layers.
    entry = max((link.entry_layer for link in topology.incoming[node.index]), default=0)
    layers = node.end_layer - max(entry, node.start_layer)
    longest = capacity.kv_token_layers // (BLOCK_TOKENS * layers) * BLOCK_TOKENS
    if not loops:
        return replace(capacity, max_decode_context=min(capacity.max_decode_context, longest))
    return replace(
        capacity,
        max_prompts=engine.max_num_seqs,
        max_prompt_tokens=_UNLIMITED,
        max_decode_tokens=engine.max_num_seqs,
        max_decode_context=longest,
    )
