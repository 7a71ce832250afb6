"""Conversions between assignments and the values that performance models and schedulers take."""

from __future__ import annotations

from typing import cast

import msgspec

from helixreal.engines.emulated import EmulatedEngine
from helixreal.net import messages
from helixreal.net.outgoing_link import EmulatedSender
from helixreal.worker.runner import TimedRunner
from helixsim.cluster import Nic
from helixsim.control.node_schedulers.composition import AUTO, StepComposer, StepLimits
from helixsim.physics.engine import EngineCosts
from helixsim.physics.performance_model import (
    PERFORMANCE_MODELS,
    ModelInputs,
    PerformanceModel,
)
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import (
    LLM,
    Capacity,
    LatencyProfile,
    MachineProfile,
    PlannerHints,
)
from helixsim.profiles.operators import OperatorTables


def performance_model_of(assignment: messages.Assignment) -> PerformanceModel:
    """The performance model of the scenario, made in this process."""
    inputs = ModelInputs(llm=llm_of(assignment), engine=engine_costs_of(assignment))
    return cast("PerformanceModel", PERFORMANCE_MODELS.make(assignment.physics, inputs))


def llm_of(assignment: messages.Assignment) -> LLM:
    """The LLM of the scenario."""
    return LLM(**msgspec.structs.asdict(assignment.llm))


def machine_of(placed: PlacedNode) -> messages.Machine:
    """The machine of a node for a message."""
    return messages.Machine(
        placed.machine_type,
        placed.region,
        placed.nic.inbound_bytes_per_s,
        placed.nic.outbound_bytes_per_s,
        placed.disk_bytes_per_s,
    )


def engine_costs_of(assignment: messages.Assignment) -> EngineCosts:
    """The scenario's serving engine."""
    return EngineCosts.model_validate_json(assignment.engine_costs)


def engine_json(engine: EngineCosts) -> str:
    """A serving engine as JSON; the inverse of :func:`engine_costs_of`."""
    return engine.model_dump_json(include=set(EngineCosts.model_fields))


def emulated_runner(name: str, assignment: messages.Assignment) -> TimedRunner:
    """A runner for an emulated engine, with the step times of the performance model."""
    node = placed_node(name, assignment)
    engine = EmulatedEngine(
        node.capacity.kv_token_layers,
        node.end_layer,
        assignment.llm.num_layers,
        assignment.llm.activation_bytes_per_token,
    )
    return TimedRunner(engine, performance_model_of(assignment).step_timer(node))


def emulated_sender(assignment: messages.Assignment) -> EmulatedSender | None:
    """The sending side of an emulated worker; None if the model has no sending costs."""
    costs = performance_model_of(assignment).sending
    if costs is None or not assignment.emulate_links:
        return None
    return EmulatedSender(costs, assignment.machine.outbound_bytes_per_s, str(assignment.node))


def placed_node(name: str, assignment: messages.Assignment) -> PlacedNode:
    """The node, with its layers and its machine."""
    machine, capacity = assignment.machine, capacity_of(assignment.limits)
    num_layers = assignment.end_layer - assignment.start_layer
    return PlacedNode(
        index=assignment.node,
        name=name,
        machine_type=machine.machine_type,
        region=machine.region,
        nic=Nic(machine.inbound_bytes_per_s, machine.outbound_bytes_per_s),
        disk_bytes_per_s=machine.disk_bytes_per_s,
        start_layer=assignment.start_layer,
        end_layer=assignment.end_layer,
        profile=MachineProfile(
            machine_type=machine.machine_type,
            llm=assignment.llm.name,
            prefill=_profile(assignment.prefill),
            decode=_profile(assignment.decode),
            capacities={num_layers: capacity},
            max_layers=num_layers,
            hints=PlannerHints(num_layers, num_layers, 1.0),
            operators=_operators(assignment.operators),
        ),
        capacity=capacity,
    )


def capacity_of(limits: messages.Limits) -> Capacity:
    """The capacity that limits of a message describe."""
    return Capacity(
        kv_token_layers=limits.kv_token_layers,
        max_prompts=limits.max_prompts,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_decode_tokens=limits.max_decode_tokens,
        max_decode_context=limits.max_decode_context,
    )


def limits_of(capacity: Capacity) -> messages.Limits:
    """Limits for a message; the inverse of :func:`capacity_of`."""
    return messages.Limits(
        capacity.kv_token_layers,
        capacity.max_prompts,
        capacity.max_prompt_tokens,
        capacity.max_decode_tokens,
        capacity.max_decode_context,
    )


def composition_message(limits: StepLimits, num_stages: float) -> messages.Composition:
    """Limits of steps for a message; see :func:`step_composer`."""
    assert limits.max_prefill_tokens != AUTO, "the control plane knows the tokens of a chunk"
    return messages.Composition(
        limits.max_prefill_tokens, limits.max_decodes, limits.max_wait_s, num_stages
    )


def step_composer(assignment: messages.Assignment) -> StepComposer | None:
    """What limits the steps of a node, if anything does."""
    composition = assignment.composition
    if composition is None:
        return None
    limits = StepLimits(
        max_prefill_tokens=composition.max_prefill_tokens,
        max_decodes=composition.max_decodes,
        max_wait_s=composition.max_wait_s,
    )
    return StepComposer(limits, composition.num_stages)


def operators_json(tables: OperatorTables | None) -> str:
    """Operator tables as JSON for a message; empty without."""
    return "" if tables is None else msgspec.json.encode(tables).decode()


def _operators(text: str) -> OperatorTables | None:
    return msgspec.json.decode(text, type=OperatorTables) if text else None


def curve_of(profile: LatencyProfile) -> messages.Curve:
    """A latency profile for a message."""
    return messages.Curve(list(profile.tokens), list(profile.seconds))


def _profile(curve: messages.Curve) -> LatencyProfile:
    return LatencyProfile(tuple(curve.tokens), tuple(curve.seconds))
