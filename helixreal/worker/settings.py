"""Settings of a worker, and what it makes of them when it has its assignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from helixreal.engines import EMULATED
from helixreal.engines.engine import Engine, EngineSpec
from helixreal.net import messages
from helixreal.worker.emulation import capacity_of, engine_costs_of, step_composer
from helixsim.control.node_schedulers import (
    NODE_SCHEDULERS,
    NodeScheduler,
    NodeSchedulerInputs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Settings of a worker, known before its assignment.

    Attributes
    ----------
    node
        Name of its node.
    coordinator
        Address of the coordinator, ``tcp://host:port``.
    engine
        Name of its engine: ``emulated``, ``torch``, ``vllm`` or a registered one.
    give_up_after_s
        Silence of the coordinator after which the worker ends with an error.
    model, device, dtype, kv_memory_bytes, dummy_weights, options
        See :class:`helixreal.engines.engine.EngineSpec`.
    """

    node: str
    coordinator: str
    engine: str = EMULATED
    give_up_after_s: float = 1800.0
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    kv_memory_bytes: int | None = None
    dummy_weights: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def engine_spec(settings: WorkerSettings, assignment: messages.Assignment) -> EngineSpec:
    """What a real engine is made of."""
    return EngineSpec(
        start_layer=assignment.start_layer,
        end_layer=assignment.end_layer,
        num_layers=assignment.llm.num_layers,
        entry_layers=tuple(assignment.entry_layers),
        model=settings.model,
        device=settings.device,
        dtype=settings.dtype,
        kv_memory_bytes=settings.kv_memory_bytes,
        max_batch_tokens=max(
            assignment.limits.max_prompts * assignment.limits.max_prompt_tokens,
            engine_costs_of(assignment).max_num_batched_tokens,
        )
        + assignment.limits.max_decode_tokens,
        max_context_tokens=assignment.max_context_tokens,
        dummy_weights=settings.dummy_weights,
        options=settings.options,
    )


def node_scheduler(
    settings: WorkerSettings, assignment: messages.Assignment, engine: Engine
) -> NodeScheduler:
    """The node scheduler of the scenario, with the KV blocks of the engine."""
    counts_kv = NODE_SCHEDULERS.get(assignment.node_scheduler).counts_kv
    inputs = NodeSchedulerInputs(
        name=settings.node,
        start_layer=assignment.start_layer,
        end_layer=assignment.end_layer,
        entry_layers=assignment.entry_layers,
        limits=capacity_of(assignment.limits),
        # Real engines always need blocks, emulated ones where the simulator has them.
        kv=engine.kv if counts_kv or settings.engine != EMULATED else None,
        engine=engine_costs_of(assignment),
        num_llm_layers=assignment.llm.num_layers,
        composer=step_composer(assignment),
    )
    return cast("NodeScheduler", NODE_SCHEDULERS.make(assignment.node_scheduler, inputs))
