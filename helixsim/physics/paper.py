"""The published simulator's performance model, oddities included.

A layer takes the prefill time of all prompt tokens in the batch plus the decode time of the
number of decodes, as two passes would; a single decode counts double. At the first layer of a
node the host pays for every token that reached the node since it last started a batch there,
whichever request it belongs to: once through memory at 4 GB/s and once at 5 GB/s.

The published simulator knows no chunks of prefills. Here a chunk that is not the first attends to
the tokens of the chunks before it (:func:`.performance_model.attention_s_per_pair`).
"""

from __future__ import annotations

from collections.abc import Sequence

from helixsim.physics.performance_model import (
    ModelInputs,
    SendingCosts,
    StepTimer,
    attention_s_per_pair,
)
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM, MachineProfile
from helixsim.steps import Batch, Step

_UNPACK_BYTES_PER_S = 4e9
_PACK_BYTES_PER_S = 5e9
COPY_S_PER_BYTE = 1 / _UNPACK_BYTES_PER_S + 1 / _PACK_BYTES_PER_S
"""Time in seconds that the host spends on copying one byte of activations that a node receives."""


class PaperModel:
    """``physics: paper``; see :class:`helixsim.physics.performance_model.PerformanceModel`.

    The published simulator runs as many decodes as the answer has tokens, though the prefill
    yields the first of them, and rejects requests that find no room.
    """

    node_scheduler = "paper"
    passes_beyond_answer = 1
    requests_wait = False
    sending: SendingCosts | None = None

    def __init__(self, inputs: ModelInputs) -> None:
        self._llm = inputs.llm
        self._timers: dict[tuple[int, int, int], tuple[MachineProfile, PaperStepTimer]] = {}

    def step_timer(self, node: PlacedNode) -> StepTimer:
        """What times the steps of a node; nodes with equal tables share one."""
        capacity, profile = node.capacity, node.profile
        key = (id(profile), capacity.max_prompt_tokens, capacity.max_decode_tokens)
        if key not in self._timers:  # the profile is kept, so that no other gets its id
            self._timers[key] = profile, PaperStepTimer(self._llm, node)
        return self._timers[key][1]


class PaperStepTimer:
    """Times the steps of one node."""

    __slots__ = ("_activation_bytes", "_decode_s", "_pair_s", "_prefill_s", "_profile", "poll_s")

    def __init__(self, llm: LLM, node: PlacedNode) -> None:
        self.poll_s = 0.0
        self._activation_bytes = llm.activation_bytes_per_token
        profile, capacity = node.profile, node.capacity
        self._profile = profile
        self._pair_s = attention_s_per_pair(llm, profile.prefill)
        # Dense tables: a batch is timed hundreds of thousands of times, and token counts repeat.
        self._prefill_s = [profile.prefill(n) for n in range(capacity.max_prompt_tokens + 1)]
        self._decode_s = [profile.decode(n) for n in range(capacity.max_decode_tokens + 1)]
        # Nothing takes no time; in curves from operators, even a token reads all weights.
        self._prefill_s[0] = self._decode_s[0] = 0.0
        if len(self._decode_s) > 1:
            self._decode_s[1] *= 2

    def time_step(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """When a step is through; times of layers are added one by one, as published."""
        batch = step.passes[0]
        if len(step.passes) > 1 or step.entry_layers:
            return self._time_passes(step, now)
        try:
            layer_s = (
                self._prefill_s[batch.prompt_tokens]
                + self._decode_s[len(batch.requests) - batch.num_prompts]
            )
        except IndexError:  # larger than the paper's scheduler makes a batch
            return self._time_passes(step, now)
        if batch.num_prompts and (pairs := batch.chunk_pairs):
            layer_s += pairs * self._pair_s
        first_s = layer_s
        if step.received_tokens:
            received = step.received_tokens * self._activation_bytes
            first_s = layer_s + received / _UNPACK_BYTES_PER_S + received / _PACK_BYTES_PER_S
        start, end = now, now + first_s
        for _ in range(step.end_layer - step.start_layer - 1):
            start = end
            end += layer_s
        return (end,), start

    def _time_passes(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """The same for steps as other node schedulers compose them."""
        received = step.received_tokens * self._activation_bytes
        start = end = now + received / _UNPACK_BYTES_PER_S + received / _PACK_BYTES_PER_S
        ends = []
        for batch in step.passes:
            for start_layer, end_layer, inside in step.segments(batch):
                layer_s = self._layer_s(inside)
                for _ in range(end_layer - start_layer):
                    start = end
                    end += layer_s
            ends.append(end)
        return ends, start

    def _layer_s(self, batch: Batch) -> float:
        """How long a batch of any size takes for one layer."""
        num_tokens, num_decodes = batch.prompt_tokens, batch.num_decodes
        prefill_s = self._profile.prefill(num_tokens) if num_tokens else 0.0
        decode_s = self._profile.decode(num_decodes) if num_decodes else 0.0
        prefill_s += batch.chunk_pairs * self._pair_s
        return prefill_s + (2 * decode_s if num_decodes == 1 else decode_s)
