"""The calibrated performance model: how long the passes of an engine's step take.

Time of one layer, with ``prefill`` and ``decode`` the machine's measured profile:

- a pass of prefills: ``max(scale x prefill(tokens), decode(2)) + host + prefill host + prompts x
  per prompt``. Even a short prompt has the layer's weights read, as two decodes have.
- a pass of n decodes: ``decode(max(n, 2)) + host + (n - 1) x per sequence + context + table``, and
  ``multi-sequence overhead`` if n > 1. What the profile says of a single decode is an interpolation
  towards zero; the weights are read for one as for two.
- a pass of both: the linear parts of the layer run once over all tokens, attention of the decodes
  comes on top: ``max(scale x prefill(tokens + n), decode(2)) + decode(n) - decode(2) + ...``.

A chunk that is not the first of its prefill attends to the tokens of the chunks before it: ``new x
earlier`` pairs of tokens, at the machine's rate of prefills
(:func:`helixsim.physics.performance_model.attention_s_per_pair`).

``context`` is the time to read the tokens of context beyond the profile's context from the KV
cache; with a shorter context, decodes are faster, but never faster than two decodes. ``table`` is
the time to list the KV blocks of each decode, which the engine does for every layer. After the
LLM's last layer, a pass takes time for the LM head, the sampler and the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from helixsim.physics.engine import EngineCosts
from helixsim.physics.operators import OperatorStepTimer
from helixsim.physics.performance_model import (
    ModelInputs,
    SendingCosts,
    StepTimer,
    attention_s_per_pair,
)
from helixsim.physics.rounded_profile import without_rounding
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.profiles.machine import LLM
from helixsim.steps import Batch, Step

_LEAST_ROUND_S = 1e-6
"""A round of polling takes no less: time passes while a worker idles."""


class CalibratedModel:
    """``physics: calibrated``; see :class:`helixsim.physics.performance_model.PerformanceModel`."""

    passes_beyond_answer = 0
    requests_wait = True

    def __init__(self, inputs: ModelInputs) -> None:
        self.node_scheduler = inputs.engine.scheduler
        self._llm, self._engine = inputs.llm, inputs.engine
        self.sending: SendingCosts | None = SendingCosts(
            message_s=inputs.engine.message_s,
            bytes_per_s=inputs.engine.send_bytes_per_s,
            delivery_jitter_s=inputs.engine.delivery_jitter_s,
            is_batched=inputs.engine.scheduler != "prototype",
        )

    def step_timer(self, node: PlacedNode) -> StepTimer:
        """What times the steps of a node: from operator tables, where its machine type has some."""
        timer: TimerOfDecodes
        if node.profile.operators is None:
            timer = EngineStepTimer(self._llm, node, self._engine)
        else:
            timer = OperatorStepTimer(self._llm, node, self._engine)
        if not self._engine.step_host_s:
            return timer
        return HostStepTimer(timer, self._engine)


class TimerOfDecodes(StepTimer, Protocol):
    """A step timer that also times steps of decodes alone by their numbers."""

    def decodes_end(self, start: float, num_decodes: int, context_sum: int, longest: int) -> float:
        """When a step of decodes is through on a node that holds all layers.

        To the last bit what :meth:`time_step` says.

        Parameters
        ----------
        start
            When it begins.
        num_decodes
            Number of decodes, at least 1.
        context_sum, longest
            Sum of their contexts, and the longest, each with the new token.
        """
        ...


class HostStepTimer:
    """Adds what the host takes for a step.

    With asynchronous scheduling the host prepares a step while the GPU runs the one before, so that
    its cost shows only where the GPU is faster. Without, the GPU waits.

    Parameters
    ----------
    timer
        What the GPU takes.
    engine
        What the host takes.
    """

    def __init__(self, timer: TimerOfDecodes, engine: EngineCosts) -> None:
        self.poll_s = timer.poll_s
        self._timer = timer
        self._host_s = engine.step_host_s
        self._hides = engine.async_scheduling

    def time_step(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """When each pass of a step is through, and when its last layer started."""
        ends, last_s = self._timer.time_step(step, now)
        return [*ends[:-1], self._with_host(now, ends[-1])], last_s

    def decodes_end(self, start: float, num_decodes: int, context_sum: int, longest: int) -> float:
        """When a step of decodes is through; see :class:`TimerOfDecodes`."""
        end = self._timer.decodes_end(start, num_decodes, context_sum, longest)
        return self._with_host(start, end)

    def _with_host(self, start: float, end: float) -> float:
        return max(end, start + self._host_s) if self._hides else end + self._host_s


class EngineStepTimer:
    """Times the steps of one node.

    A step copies the hidden states that have arrived into the GPU, runs its passes, and copies
    what leaves each of them out again. A pass without requests takes the time to find that.

    Parameters
    ----------
    llm, node
        What runs where.
    engine
        What the engine costs.
    """

    def __init__(self, llm: LLM, node: PlacedNode, engine: EngineCosts) -> None:
        gpu = engine.for_machine(node.machine_type)
        self._num_layers = node.num_layers
        self._is_last = node.end_layer == llm.num_layers
        self._prefill, self._decode = node.profile.prefill, node.profile.decode
        if node.machine_type in engine.gpus:  # the published profiles, which are rounded
            self._prefill = without_rounding(self._prefill)
            self._decode = without_rounding(self._decode)
        self._least_s = self._decode(2)
        self._scale = gpu.prefill_scale
        self._host_s = gpu.layer_pass_s
        self._prefill_pass_s = gpu.layer_pass_s + gpu.prefill_pass_s
        self._several_s = gpu.multi_sequence_overhead_s
        self._further_s = engine.per_sequence_overhead_s
        self._prompt_s = engine.prompt_s
        kv_bytes_per_s = gpu.kv_read_bytes_per_s
        self._context_s = llm.kv_bytes_per_token_layer / kv_bytes_per_s if kv_bytes_per_s else 0.0
        self._table_s = engine.kv_block_s / BLOCK_TOKENS
        self._output_s = gpu.output_pass_s if self._is_last else 0.0
        self._profile_context = engine.profile_context_tokens
        self._copy_s_per_token = llm.activation_bytes_per_token / engine.copy_bytes_per_s
        self._pair_s = self._scale * attention_s_per_pair(llm, self._prefill)
        self._prefill_s: dict[int, float] = {}
        self._decode_s: list[float] = [0.0]
        self._poll_layer_s = engine.poll_layer_s
        self.poll_s = max(engine.poll_layer_s * node.num_layers, _LEAST_ROUND_S)

    def time_step(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """When each pass of a step is through all layers and copied out."""
        end = now + self.copy_s(step.received_tokens)
        ends = []
        layer_s = 0.0
        for batch in step.passes:
            if not batch.requests:
                end += self._num_layers * self._poll_layer_s
                ends.append(end)
                continue
            end, layer_s = self._pass_end(step, batch, end)
            end += self._output_s if self._is_last else self.copy_s(batch.num_tokens)
            ends.append(end)
        return ends, end - layer_s

    def _pass_end(self, step: Step, batch: Batch, start: float) -> tuple[float, float]:
        """When a pass is through all layers, and how long its last layer took."""
        if not step.entry_layers:
            layer_s = self.layer_s(batch)
            return start + self._num_layers * layer_s, layer_s
        end, layer_s = start, 0.0
        for start_layer, end_layer, inside in step.segments(batch):
            layer_s = self.layer_s(inside) if inside.requests else self._poll_layer_s
            end += (end_layer - start_layer) * layer_s
        return end, layer_s

    def layer_s(self, batch: Batch) -> float:
        """How long a pass takes for one layer."""
        num_decodes = len(batch.requests) - batch.num_prompts
        if not batch.num_prompts:
            return self.decode_layer_s(num_decodes, batch.context_tokens)
        if not num_decodes:
            seconds = self.prefill_layer_s(batch.num_prompts, batch.prompt_tokens)
        else:
            seconds = self.mixed_layer_s(
                batch.num_prompts, batch.prompt_tokens, num_decodes, batch.context_tokens
            )
        pairs = batch.chunk_pairs
        return seconds + pairs * self._pair_s if pairs else seconds

    def decodes_end(self, start: float, num_decodes: int, context_sum: int, longest: int) -> float:
        """When a step of decodes is through; see :class:`TimerOfDecodes`."""
        layer_s = self.decode_layer_s(num_decodes, context_sum - num_decodes)
        return start + self._num_layers * layer_s + self._output_s

    def copy_s(self, num_tokens: int) -> float:
        """How long the hidden states of some tokens take into the GPU, or out of it."""
        return num_tokens * self._copy_s_per_token

    def prefill_layer_s(self, num_prompts: int, num_tokens: int) -> float:
        """How long a pass of prompts takes for one layer."""
        return self._linear_s(num_tokens) + self._prefill_pass_s + num_prompts * self._prompt_s

    def decode_layer_s(self, num_decodes: int, context_tokens: int) -> float:
        """How long a pass of decodes takes for one layer; contexts are given as their sum."""
        known = self._decode_s
        while len(known) <= num_decodes:
            known.append(self._decodes_s(len(known)))
        seconds = known[num_decodes]
        if self._context_s:
            seconds += self._beyond_profile_s(num_decodes, context_tokens)
        return max(seconds, self._least_s) + context_tokens * self._table_s

    def mixed_layer_s(
        self, num_prompts: int, prompt_tokens: int, num_decodes: int, context_tokens: int
    ) -> float:
        """How long one pass of both takes for one layer."""
        if not num_prompts:
            return self.decode_layer_s(num_decodes, context_tokens)
        prompts_s = self.prefill_layer_s(num_prompts, prompt_tokens + num_decodes)
        if not num_decodes:
            return prompts_s
        attention_s = (
            self._decode(num_decodes)
            - self._least_s
            + self._beyond_profile_s(num_decodes, context_tokens)
        )
        host_s = num_decodes * self._further_s + context_tokens * self._table_s
        return prompts_s + max(attention_s, 0.0) + host_s

    def _linear_s(self, num_tokens: int) -> float:
        known = self._prefill_s.get(num_tokens)
        if known is None:
            known = max(self._scale * self._prefill(num_tokens), self._least_s)
            self._prefill_s[num_tokens] = known
        return known

    def _decodes_s(self, num_decodes: int) -> float:
        several = num_decodes > 1
        return (
            self._decode(max(num_decodes, 2))
            + self._host_s
            + (self._several_s if several else 0.0)
            + (num_decodes - 1) * self._further_s
        )

    def _beyond_profile_s(self, num_decodes: int, context_tokens: int) -> float:
        return self._context_s * (context_tokens - num_decodes * self._profile_context)
