"""LLMs, machine types and their measured profiles, as frozen values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from helixsim.errors import PlacementError, ScenarioError

if TYPE_CHECKING:
    from helixsim.profiles.kv_memory import KvMemory
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
        Weights of one layer, read from disk before a run starts; the mean of all layers.
    kv_bytes_per_token_layer
        Size of the keys and values of one token in the KV cache of one layer; the mean of all.
    embedding_bytes, head_bytes
        Weights before the first layer, and after the last.
    shared_bytes
        What is in both: a machine with the first and the last layer holds it once.
    bytes_of_layer, kv_bytes_of_layer
        Weights, and keys and values of one token, of each layer; empty if all are equal.
    """

    name: str
    num_layers: int
    activation_bytes_per_token: float
    token_bytes: float
    layer_bytes: float
    kv_bytes_per_token_layer: float
    embedding_bytes: float = 0.0
    head_bytes: float = 0.0
    shared_bytes: float = 0.0
    bytes_of_layer: tuple[float, ...] = ()
    kv_bytes_of_layer: tuple[float, ...] = ()

    @property
    def has_equal_layers(self) -> bool:
        """Whether all layers have the same sizes."""
        return not (self.bytes_of_layer or self.kv_bytes_of_layer)

    @property
    def once_bytes(self) -> float:
        """Weights outside the layers."""
        return self.embedding_bytes + self.head_bytes - self.shared_bytes

    def weights_bytes(self, start_layer: int, end_layer: int) -> float:
        """Weights of a machine with the layers ``[start_layer, end_layer)``."""
        size = (end_layer - start_layer) * self.layer_bytes
        if self.bytes_of_layer:
            size = sum(self.bytes_of_layer[start_layer:end_layer])
        is_first, is_last = start_layer == 0, end_layer == self.num_layers
        if is_first and is_last:
            return size + self.once_bytes
        return size + is_first * self.embedding_bytes + is_last * self.head_bytes

    def kv_bytes_per_token(self, start_layer: int, end_layer: int) -> float:
        """Size of the keys and values of one token in the layers ``[start_layer, end_layer)``."""
        if self.kv_bytes_of_layer:
            return sum(self.kv_bytes_of_layer[start_layer:end_layer])
        return (end_layer - start_layer) * self.kv_bytes_per_token_layer


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
    kv_memory
        The memory that the KV capacities follow from, if they do.
    figures
        What kind of figures the times are (:data:`.FiguresKind`); None if that is unknown.
    source
        Where they are from, in a sentence.
    note
        Why these and not better ones, for the user; mostly empty.
    """

    machine_type: str
    llm: str
    prefill: LatencyProfile
    decode: LatencyProfile
    capacities: Mapping[int, Capacity]
    max_layers: int
    hints: PlannerHints
    operators: OperatorTables | None = None
    kv_memory: KvMemory | None = None
    figures: FiguresKind | None = None
    source: str = ""
    note: str = ""

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

    def range_capacity(self, start_layer: int, end_layer: int) -> Capacity:
        """Capacity of such a machine when it holds the layers ``[start_layer, end_layer)``.

        Where the KV capacity follows from the memory, that of these very layers; otherwise of any
        as many layers.

        Raises
        ------
        PlacementError
            If it cannot hold them.
        """
        num_layers = end_layer - start_layer
        if self.kv_memory is None:
            return self.capacity(num_layers)
        token_layers = self.kv_memory.token_layers(start_layer, end_layer)
        if not token_layers:
            raise PlacementError(
                f"the memory of '{self.machine_type}' is too small for the layers {start_layer} to "
                f"{end_layer - 1} of {self.llm} and a KV cache"
            )
        known = self.capacities
        row = known[num_layers if num_layers in known else max(known)]
        return replace(row, kv_token_layers=token_layers)


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
    dollars_per_hour
        A usual price; None if it is not known.
    power_w
        Power limits of its GPUs together; None if they are not known.
    """

    name: str
    memory_bytes: float
    nic_bytes_per_s: float
    disk_bytes_per_s: float
    profiles: Mapping[str, MachineProfile]
    dollars_per_hour: float | None = None
    power_w: float | None = None
