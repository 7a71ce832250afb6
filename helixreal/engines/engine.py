"""What every engine does: run layers on a batch, keep KV caches, turn activations into bytes.

A worker owns one engine and calls it from one thread. It hands it rows, one for each request of
a batch, runs some consecutive layers on them, and either sends the hidden states on or, behind
the last layer, gets tokens. A batch can be split and joined between two calls: every row carries
its own payload.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from helixsim.control.kv_cache import KvCache

Payload = Any
"""What a row takes along: token ids before the first layer, then a hidden state of the engine's
own kind, of as many tokens as the row has."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Attributes
    ----------
    temperature
        0 takes the most probable token (greedy).
    top_p
        Only the most probable tokens, which together have this probability, are drawn from.
    seed
        Makes a draw repeatable: it depends on the seed and the position of the token alone.
        None draws anew each time.
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
        The key of its KV cache.
    position
        Tokens of it that the cache holds before this pass.
    num_tokens
        Tokens that go through the layers in this pass.
    payload
        Token ids (a sequence of ints) where the pass enters layer 0, else the hidden state.
    wants_token
        Whether a token is wanted behind the last layer; not for a part of a prompt that more
        follows on.
    sampling
        How that token is chosen.
    """

    request: Hashable
    position: int
    num_tokens: int
    payload: Payload
    wants_token: bool = True
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a worker wants of its engine.

    Attributes
    ----------
    start_layer, end_layer
        It is to hold the layers ``[start_layer, end_layer)``.
    num_layers
        Of the whole LLM; one that ends with it also samples tokens.
    entry_layers
        Where requests may enter, `start_layer` among them: the boundaries of calls of `run`.
    model
        Folder of the model (Hugging Face format: config.json and safetensors), where needed.
    device
        For example ``cpu`` or ``cuda:0``.
    dtype
        Of weights and activations, for example ``float32`` or ``bfloat16``.
    kv_memory_bytes
        Memory for KV caches; None leaves it to the engine.
    block_tokens
        Tokens in a block of KV cache.
    max_batch_tokens
        A batch has no more tokens.
    max_context_tokens
        No request gets longer.
    dummy_weights
        Random weights instead of the model's; for tests of load.
    options
        What else the engine understands.
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
    def num_held(self) -> int:
        """Layers that it holds."""
        return self.end_layer - self.start_layer


class Engine(Protocol):
    """Runs layers; made by a function that takes an :class:`EngineSpec`, which loads the model.

    Attributes
    ----------
    kv
        The account of its KV blocks. A request's blocks are allocated before a pass of it runs
        (:mod:`helixsim.control.kv_cache`).
    kv_blocks
        Blocks of KV cache that there really are; each holds `block_tokens` tokens on all layers
        that the engine holds.
    block_tokens
        Tokens in a block.
    wire_bytes_per_token
        What one token's hidden state weighs in `pack`.
    """

    kv: KvCache
    kv_blocks: int
    block_tokens: int
    wire_bytes_per_token: int

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch; blocks have been allocated.

        Returns
        -------
        list
            For each row its hidden state; or, where `end_layer` is the last of the LLM, its
            token id, and None where none is wanted.
        """
        ...

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """Hidden states of some rows as one or more buffers, row after row in each."""
        ...

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """The way back, given the tokens of each row.

        Raises
        ------
        ValueError
            If the buffers do not have the number or the size that the tokens need.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
