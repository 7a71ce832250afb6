"""What a serving engine costs beside its kernels: the parameters of the calibrated physics.

A worker of an engine fetches what has arrived, runs one step (the prefills, then the decodes, or
both in one pass), and sends what it is done with. Between the kernels, its host launches work,
copies hidden states and handles messages; these few figures say how long that takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Batching = Literal["separate", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCosts:
    """What differs between machine types.

    Attributes
    ----------
    prefill_scale
        The time of a prefill in the engine over that of the machine's profile.
    layer_pass_s
        Host time for each layer of each pass, on top of the kernels.
    several_decodes_s
        Time per layer that a pass of two decodes or more takes beyond its profile. A single
        decode does not take it.
    kv_read_bytes_per_s
        How fast attention reads the KV cache; infinite where context costs nothing.
    """

    prefill_scale: float = 1.0
    layer_pass_s: float = 0.0
    several_decodes_s: float = 0.0
    kv_read_bytes_per_s: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRange:
    """The range of what an engine was fitted to; beyond it, it extrapolates.

    Attributes
    ----------
    machine_types, llms
        Those that took part.
    max_in_flight
        The most requests that were on their way through the cluster at once.
    max_prompt_tokens, max_context_tokens
        Longest prompt and context.
    max_decode_tokens_per_s
        The highest decode throughput over a minute.
    """

    machine_types: tuple[str, ...]
    llms: tuple[str, ...]
    max_in_flight: int
    max_prompt_tokens: int
    max_context_tokens: int
    max_decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """A serving engine.

    Attributes
    ----------
    name
        For titles.
    batching
        ``separate``: a step runs its prefills in one pass and its decodes in a second, as the
        recorded prototype does. ``mixed``: one pass runs both.
    max_batched_tokens
        The most prompt tokens in one pass (``separate``), or prompt tokens and decodes together
        (``mixed``). A longer prompt goes alone.
    further_request_s
        Host time per layer for each decode of a pass beyond the first.
    prompt_s
        Host time per layer for each prompt of a pass.
    profile_context_tokens
        Context of each request with which the machines' decode profiles were measured. Tokens
        beyond it cost the time to read them from the KV cache, missing ones spare it.
    copy_bytes_per_s
        How fast hidden states come from the network's buffers into the GPU, and back.
    send_bytes_per_s
        How fast one machine hands messages to the network, all its links together.
    message_s
        Time that a machine spends to send one message.
    poll_layer_s
        Time per layer to find that nobody waits there. An idle worker looks again and again, one
        round after another.
    delivery_jitter_s
        Mean of the exponential delay between a message's arrival and its being noticed.
    gpus
        Machine type -> what differs for it.
    other_gpus
        For machine types that are not in `gpus`.
    known
        Where it is known to hold.
    """

    name: str = "ideal"
    batching: Batching = "separate"
    max_batched_tokens: int = 4096
    further_request_s: float = 0.0
    prompt_s: float = 0.0
    profile_context_tokens: int = 1000
    copy_bytes_per_s: float = 1e12
    send_bytes_per_s: float = 1e12
    message_s: float = 0.0
    poll_layer_s: float = 0.0
    delivery_jitter_s: float = 0.0
    gpus: Mapping[str, GpuCosts] = field(default_factory=dict)
    other_gpus: GpuCosts = GpuCosts()
    known: KnownRange | None = None

    def for_machine(self, machine_type: str) -> GpuCosts:
        """What is particular to a machine type."""
        return self.gpus.get(machine_type, self.other_gpus)


IDEAL_ENGINE = EngineCosts()
"""An engine that costs nothing beside its kernels."""
