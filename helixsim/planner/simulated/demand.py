"""What a scenario's workload and scheduler mean to the surrogate, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from helixsim.control.control_plane import (
    FEWEST_CHUNK_TOKENS,
    mixes_batches,
    node_scheduler_name,
)
from helixsim.control.node_schedulers import NODE_SCHEDULERS, composes_steps
from helixsim.control.node_schedulers.composition import AUTO
from helixsim.scenario import offered_load
from helixsim.scenario.offered_load import class_weights
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.workload_values import UserClass, Workload
from helixsim.traces.values import Lengths

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


def prompt_spread(workload: Workload, duration_s: float) -> float:
    """Mean of the squares of the lengths of prompts over the square of their mean.

    Parameters
    ----------
    workload
        Its classes count by their shares of the requests; turns of conversations are requests.
    duration_s
        Length of the run, over which rates of classes are averaged.
    """
    if workload.trace is not None:
        turns = [turn for request in workload.trace.requests for turn in request.turns]
        mean, mean_square = _moments([turn.prompt_tokens for turn in turns])
        return mean_square / mean**2
    groups = workload.groups
    if not groups:
        return 1.0
    weights = class_weights(workload, duration_s)
    moments = [_moments(_prompts(users)) for users in groups]
    mean = sum(share * first for share, (first, _) in zip(weights, moments, strict=True))
    mean_square = sum(share * second for share, (_, second) in zip(weights, moments, strict=True))
    return mean_square / mean**2


def _moments(values: Sequence[int]) -> tuple[float, float]:
    return sum(values) / len(values), sum(value * value for value in values) / len(values)


def _prompts(users: UserClass) -> list[int]:
    """Lengths of prompts of a class of users: all of a list, or some that are drawn."""
    lengths, talks, rng = users.lengths, users.conversations, Random(0)
    if talks is None and isinstance(lengths, Lengths):
        return [prompt for prompt, _ in lengths.pairs]
    found: list[int] = []
    while len(found) < _SAMPLED:
        before = 0 if talks is None else talks.system_prompt_tokens
        for _ in range(1 if talks is None else talks.turns.sample(rng)):
            prompt, output = lengths.sample(rng)
            found.append(before + prompt)
            before += prompt + output
    return found


def offered_requests_per_s(scenario: Scenario, tokens_per_request: float) -> float:
    """Requests that arrive per second; infinite where load follows the throughput.

    Parameters
    ----------
    scenario
        Its workload.
    tokens_per_request
        Tokens of a mean request, for a workload whose rate is in tokens.
    """
    workload = scenario.workload
    if workload.mode == "online" and workload.mean_tokens_per_s is not None:
        return workload.mean_tokens_per_s / tokens_per_request
    rate = offered_load.offered_requests_per_s(workload, scenario.run.duration_s)
    return inf if rate is None else rate
