"""LLMs, machine types and their measured profiles, as frozen values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from helixsim.errors import PlacementError, ScenarioError

if TYPE_CHECKING:
    from helixsim.profiles.operators import OperatorTables
    from helixsim.profiles.sources.source import FiguresKind


@dataclass(frozen=True, slots=True)
class LLM:
    """A large language model, with the properties that serving by layers needs.

    Attributes
    ----------
    name
        For example ``llama2-70b``.
    num_layers
        Transformer layers; a route runs through all of them once per iteration.
    activation_bytes_per_token
        Size of one token's hidden state in messages between two nodes.
    token_bytes
        Size of one token id in messages to and from the coordinator.
    layer_bytes
        Weights of one layer, read from disk before a run starts.
    kv_bytes_per_token_layer
        Size of the keys and values of one token in the KV cache of one layer.
    once_bytes
        Weights outside the layers: of the embedding and the head.
    """

    name: str
    num_layers: int
    activation_bytes_per_token: float
    token_bytes: float
    layer_bytes: float
    kv_bytes_per_token_layer: float
    once_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Batched tokens -> seconds for one layer, piecewise linear between measured points.

    Attributes
    ----------
    tokens
        Batched tokens of the measured points, increasing from 0.
    seconds
        Time of one layer at each of them.

    Raises
    ------
    ScenarioError
        If the points are invalid; `where` is the first invalid point.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        tokens, seconds = self.tokens, self.seconds
        if len(tokens) < 2:
            raise ScenarioError("give two points at least", where="tokens")
        if len(tokens) != len(seconds):
            raise ScenarioError(
                f"{len(tokens)} numbers of tokens but {len(seconds)} times; give one time for "
                "each number of tokens"
            )
        if tokens[0] != 0:
            raise ScenarioError(f"must be 0, not {tokens[0]}", where="tokens[0]")
        for index, (before, after) in enumerate(pairwise(tokens), start=1):
            if after <= before:
                raise ScenarioError(
                    f"tokens must rise, but {after} follows {before}", where=f"tokens[{index}]"
                )
        for index, value in enumerate(seconds):
            if not (isfinite(value) and value >= 0):
                raise ScenarioError(
                    f"must be a finite time of at least zero, not {value}",
                    where=f"seconds[{index}]",
                )
        if seconds[-1] == 0:
            raise ScenarioError("must be above zero", where=f"seconds[{len(seconds) - 1}]")

    def __call__(self, num_tokens: float) -> float:
        """Seconds that one layer takes for a batch of `num_tokens`.

        Linear interpolation. Beyond the last point, the line through the last two points is
        extrapolated, unless it falls (measurements scatter): then the last time is used.
        """
        if num_tokens > self.tokens[-1] and self.seconds[-1] < self.seconds[-2]:
            return self.seconds[-1]
        right = min(max(bisect_right(self.tokens, num_tokens), 1), len(self.tokens) - 1)
        x0, x1 = self.tokens[right - 1], self.tokens[right]
        y0, y1 = self.seconds[right - 1], self.seconds[right]
        return y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """KV capacity and batch limits of a machine with a given number of layers.

    Attributes
    ----------
    kv_token_layers
        KV capacity in tokens times layers: a request of 10 tokens on 3 layers uses 30.
    max_prompts
        Prompts in one batch, at most.
    max_prompt_tokens
        Prompt tokens in one batch, at most.
    max_decode_tokens
        Decodes (one token each) in one batch, at most.
    max_decode_context
        Sum of the context lengths of the decodes in one batch, at most.
    """

    kv_token_layers: int
    max_prompts: int
    max_prompt_tokens: int
    max_decode_tokens: int
    max_decode_context: int


@dataclass(frozen=True, slots=True)
class PlannerHints:
    """Inputs of the published throughput estimate for a machine and an LLM.

    Only the proportions of `start_performance` between machine types matter.

    Attributes
    ----------
    typical_layers
        Layers on such a machine in a cluster with many machines.
    crowded_typical_layers
        The same in a cluster with typical layers of less than 1.2 times the LLM in total.
    start_performance
        Initial performance, in layers x tokens/s.
    """

    typical_layers: int
    crowded_typical_layers: int
    start_performance: float


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """A machine type serving one LLM.

    Attributes
    ----------
    machine_type, llm
        Names.
    prefill, decode
        Seconds for one layer against batched tokens.
    capacities
        Number of layers -> capacity, in increasing order. Every count from 1 to `max_layers`,
        and larger counts if they are known.
    max_layers
        The most layers that a planner may assign to it.
    hints
        Inputs of the published throughput estimate.
    operators
        Times of its operators, if they were measured; `prefill` and `decode` then follow from
        them.
    figures
        What kind of figures the times are (:data:`.FiguresKind`); None if that is unknown.
    source
        Where they are from, in a sentence.
    """

    machine_type: str
    llm: str
    prefill: LatencyProfile
    decode: LatencyProfile
    capacities: Mapping[int, Capacity]
    max_layers: int
    hints: PlannerHints
    operators: OperatorTables | None = None
    figures: FiguresKind | None = None
    source: str = ""

    def capacity(self, num_layers: int) -> Capacity:
        """Capacity of such a machine when it holds `num_layers`.

        Raises
        ------
        PlacementError
            If it cannot hold this number of layers.
        """
        if num_layers not in self.capacities:
            raise PlacementError(
                f"'{self.machine_type}' has no capacity for {num_layers} layers of {self.llm}; "
                f"it has one for {', '.join(map(str, self.capacities))}"
            )
        return self.capacities[num_layers]


@dataclass(frozen=True, slots=True)
class MachineType:
    """A kind of machine: its hardware, and how it serves each LLM that was profiled on it.

    Attributes
    ----------
    name
        For example ``L4x2``: two L4 in one machine.
    memory_bytes
        GPU memory of the whole machine.
    nic_bytes_per_s
        Its network interface, each direction.
    disk_bytes_per_s
        How fast it reads weights.
    profiles
        LLM name -> profile.
    """

    name: str
    memory_bytes: float
    nic_bytes_per_s: float
    disk_bytes_per_s: float
    profiles: Mapping[str, MachineProfile]
