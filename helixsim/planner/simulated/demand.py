"""What a scenario's workload and scheduler mean to the surrogate, as numbers."""

from __future__ import annotations

from math import inf
from random import Random

from helixsim.control.control_plane import (
    FEWEST_CHUNK_TOKENS,
    mixes_batches,
    node_scheduler_name,
)
from helixsim.control.node_schedulers import NODE_SCHEDULERS, composes_steps
from helixsim.control.node_schedulers.composition import AUTO
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.workload_values import Workload
from helixsim.traces.lengths import LengthModel

_SAMPLED = 4000
"""Requests that are drawn from a model of lengths, to know their spread to some percent."""


def num_chunks(scenario: Scenario, prompt_tokens: float) -> float | None:
    """Chunks of a mean prompt that leave in a stream; None where prompts do not."""
    scheduler = scenario.scheduler
    factory = NODE_SCHEDULERS.get(node_scheduler_name(scenario))
    if not (scheduler.stream_chunks and composes_steps(factory)):
        return None
    tokens = scheduler.prefill_chunk_tokens
    if tokens is None or scheduler.step.max_prefill_tokens is None:
        return None
    if tokens == AUTO:
        tokens = FEWEST_CHUNK_TOKENS // 2 if mixes_batches(scenario) else FEWEST_CHUNK_TOKENS
    return max(prompt_tokens / tokens, 1.0)


def prompt_spread(workload: Workload) -> float:
    """Mean of the squares of the lengths of prompts over the square of their mean."""
    lengths = workload.lengths
    if workload.trace is not None:
        prompts = [request.prompt_tokens for request in workload.trace.requests]
    elif lengths is None:
        return 1.0
    else:
        if isinstance(lengths, LengthModel):
            lengths = lengths.draw(_SAMPLED, Random(0))
        prompts = [prompt for prompt, _ in lengths.pairs]
    return len(prompts) * sum(tokens * tokens for tokens in prompts) / sum(prompts) ** 2


def offered_requests_per_s(scenario: Scenario, tokens_per_request: float) -> float:
    """Requests that arrive per second; infinite where load follows the throughput."""
    workload = scenario.workload
    if workload.mode == "offline":
        return inf
    if workload.trace is not None:
        return workload.trace.rate_per_s * workload.rate_scale
    return (workload.mean_tokens_per_s or inf) / tokens_per_request
