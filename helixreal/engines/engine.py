"""The interface of engines: run layers on a batch, keep KV caches, serialize hidden states.

A worker owns one engine and calls it from one thread. Each call runs consecutive layers on rows,
one for each request of a batch, and returns hidden states or, after the last layer, tokens. Batches
can be split and joined between two calls: every row carries its own payload.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from helixsim.control.kv_cache import KvCache

Payload = Any
"""Data of a row: token ids before the first layer, then the hidden states of its tokens, in a type
of the engine's choice."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of a request.

    Attributes
    ----------
    temperature
        0 takes the most probable token (greedy).
    top_p
        A token is drawn from the most probable tokens that together have this probability.
    seed
        A draw depends only on the seed and the position of the token; None is not repeatable.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


GREEDY = Sampling()


@dataclass(slots=True)
class Row:
    """One request's part of a batch.

    Attributes
    ----------
    request
        The key of its KV blocks.
    position
        Tokens in the KV cache before the pass.
    num_tokens
        Tokens of the pass.
    payload
        Token ids (a sequence of ints) if the pass enters layer 0, else hidden states.
    wants_token
        Whether a token is sampled after the last layer; false for all but the last chunk of a
        prefill.
    sampling
        How the token is sampled.
    """

    request: Hashable
    position: int
    num_tokens: int
    payload: Payload
    wants_token: bool = True
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True)
class RowFailure:
    """In place of a row's payload: this row alone has failed, for a reason that users see."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Settings of an engine.

    Attributes
    ----------
    start_layer, end_layer
        The engine holds the layers ``[start_layer, end_layer)``.
    num_layers
        Layers of the LLM; an engine with the last layer also samples tokens.
    entry_layers
        Layers at which requests enter, with `start_layer`: calls of `run` start and end there.
    model
        Folder of the model (Hugging Face format: config.json and safetensors), if needed.
    device
        For example ``cpu`` or ``cuda:0``; several with commas between them.
    dtype
        Data type of weights and activations, for example ``float32`` or ``bfloat16``.
    kv_memory_bytes
        Memory for KV caches, of all devices together; None leaves the size to the engine.
    block_tokens
        Tokens of a KV block.
    max_batch_tokens
        Limit of the tokens of a batch.
    max_context_tokens
        Limit of the tokens of a request.
    dummy_weights
        Random weights instead of the model's, for load tests.
    options
        Additional options of the engine.
    """

    start_layer: int
    end_layer: int
    num_layers: int
    entry_layers: tuple[int, ...]
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    kv_memory_bytes: int | None = None
    block_tokens: int = 16
    max_batch_tokens: int = 2048
    max_context_tokens: int = 4096
    dummy_weights: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices among which the engine divides its layers; one in most cases."""
        return tuple(name.strip() for name in self.device.split(","))

    @property
    def num_held(self) -> int:
        """Number of layers of the engine."""
        return self.end_layer - self.start_layer


class Engine(Protocol):
    """Runs layers of a model. A function with an :class:`EngineSpec` makes it and loads the model.

    Attributes
    ----------
    kv
        Allocates its KV blocks; blocks of a request are allocated before its pass runs
        (:mod:`helixsim.control.kv_cache`).
    kv_blocks
        Number of KV blocks; each holds `block_tokens` tokens on all layers of the engine.
    block_tokens
        Tokens of a KV block.
    wire_bytes_per_token
        Bytes of one token's hidden state in `pack`.

    An engine may also have `vocabulary`, its number of token ids: requests with other ids are
    then refused before they reach it. And `lost`: why it cannot go on, None while it can; the
    worker ends when it is set.
    """

    kv: KvCache
    kv_blocks: int
    block_tokens: int
    wire_bytes_per_token: int

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch whose KV blocks are allocated.

        After an error, the worker calls it again with parts of the batch to find the rows that
        caused it. So payloads must not be changed, and KV slots of other tokens not be written.
        After errors of :func:`~helixreal.engines.failures.ends_engine`, the worker ends.

        It returns when the device has computed the results: the worker and the profile take the
        time of the call as the time of the layers.

        Returns
        -------
        list
            Hidden states of each row; or, if `end_layer` is the LLM's number of layers, its token
            id, None if `wants_token` is false. A :class:`RowFailure` for a row that failed alone.
        """
        ...

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """Serialize hidden states of rows to one or more buffers, each with all rows in order."""
        ...

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """The inverse of `pack`, given the number of tokens of each row.

        Raises
        ------
        ValueError
            If the number or the size of the buffers does not match the tokens.
        """
        ...

    def close(self) -> None:
        """Release weights and KV caches."""
        ...
