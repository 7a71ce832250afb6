"""What emulation makes of a welcome: the node as the physics of computing takes it."""

from __future__ import annotations

from helixreal.engines.emulated import EmulatedEngine
from helixreal.net import messages as wire
from helixreal.worker.runner import TimedRunner
from helixsim.cluster import Nic
from helixsim.physics.paper import PaperStepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import (
    LLM,
    Capacity,
    LatencyProfile,
    MachineProfile,
    PlannerHints,
)


def emulated_runner(name: str, welcome: wire.Welcome) -> TimedRunner:
    """An emulated engine that takes as long as the node's profile says."""
    node = _placed_node(name, welcome)
    engine = EmulatedEngine(
        node.capacity.kv_token_layers,
        node.num_layers,
        welcome.num_layers,
        welcome.activation_bytes_per_token,
    )
    return TimedRunner(engine, PaperStepTimer(_llm(welcome), node))


def capacity_of(limits: wire.Limits) -> Capacity:
    """Limits as batching takes them."""
    return Capacity(
        kv_token_layers=limits.kv_token_layers,
        max_prompts=limits.max_prompts,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_decode_tokens=limits.max_decode_tokens,
        max_decode_context=limits.max_decode_context,
    )


def limits_of(capacity: Capacity) -> wire.Limits:
    """The way back."""
    return wire.Limits(
        capacity.kv_token_layers,
        capacity.max_prompts,
        capacity.max_prompt_tokens,
        capacity.max_decode_tokens,
        capacity.max_decode_context,
    )


def curve_of(profile: LatencyProfile) -> wire.Curve:
    """A latency profile as it is sent."""
    return wire.Curve(list(profile.tokens), list(profile.seconds))


def _llm(welcome: wire.Welcome) -> LLM:
    return LLM(
        name=welcome.llm,
        num_layers=welcome.num_layers,
        activation_bytes_per_token=welcome.activation_bytes_per_token,
        token_bytes=0.0,
        layer_bytes=0.0,
        kv_bytes_per_token_layer=0.0,
    )


def _placed_node(name: str, welcome: wire.Welcome) -> PlacedNode:
    capacity = capacity_of(welcome.limits)
    num_layers = welcome.end_layer - welcome.start_layer
    return PlacedNode(
        index=welcome.node,
        name=name,
        machine_type=name,
        region="",
        nic=Nic(0.0, 0.0),
        disk_bytes_per_s=0.0,
        start_layer=welcome.start_layer,
        end_layer=welcome.end_layer,
        profile=MachineProfile(
            machine_type=name,
            llm=welcome.llm,
            prefill=_profile(welcome.prefill),
            decode=_profile(welcome.decode),
            capacities={num_layers: capacity},
            max_layers=num_layers,
            hints=PlannerHints(num_layers, num_layers, 1.0),
        ),
        capacity=capacity,
    )


def _profile(curve: wire.Curve) -> LatencyProfile:
    return LatencyProfile(tuple(curve.tokens), tuple(curve.seconds))
