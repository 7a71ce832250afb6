"""The interface of engines: run layers on a batch, keep KV caches, serialize hidden states.

A worker owns one engine and calls it from one thread. Each call runs consecutive layers on rows,
one for each request of a batch, and returns hidden states or, after the last layer, tokens. Batches
can be split and joined between two calls: every row carries its own payload.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import msgspec

from helixsim.control.kv_cache import KvCache

Payload = Any
"""Data of a row: token ids before the first layer, then the hidden states of its tokens, in a type
of the engine's choice."""

Buffer = bytes | bytearray | memoryview


_Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_GREEDY_BELOW = 1e-5
MAX_GRAMMAR = 100_000
"""The most characters of a grammar."""
MAX_LOGPROBS = 20
"""The most alternatives of a token whose log probabilities can be asked for."""


class Sampling(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """Sampling parameters of a request, as in vLLM.

    Attributes
    ----------
    temperature
        0 takes the most probable token (greedy), and so do values below 1e-5.
    top_p
        A token is drawn from the most probable tokens that together have this probability.
    seed
        A draw depends only on the seed and the position of the token; None is not repeatable.
    top_k
        A token is drawn from this number of most probable tokens; 0 for no limit.
    min_p
        A token is drawn from the tokens with at least this share of the highest probability.
    presence_penalty, frequency_penalty
        Subtracted from the logits of tokens of the answer: once, and for each occurrence.
    repetition_penalty
        Divides positive logits, and multiplies negative ones, of tokens of prompt and answer.
    logit_bias
        (token, value to add to its logit).
    min_tokens, stop_tokens
        The first `min_tokens` tokens of an answer are none of `stop_tokens`.
    logprobs
        Number of alternatives whose log probabilities come with each token; None for no log
        probabilities.
    prompt_logprobs
        The same for the tokens of the prompt.
    prompt_tokens
        Number of tokens of the prompt; the answer begins after them. The coordinator sets it.
    grammar
        A grammar that the answer follows, as llguidance writes it; empty for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[_Token, float], ...] = ()
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    stop_tokens: tuple[_Token, ...] = ()
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    grammar: Annotated[str, msgspec.Meta(max_length=MAX_GRAMMAR)] = ""

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1

    @property
    def needs_context(self) -> bool:
        """Whether the last stage must know the tokens of the prompt and of the answer so far."""
        return self.has_penalties or self.prompt_logprobs is not None or bool(self.grammar)


GREEDY = Sampling()


class TokenScore(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Log probabilities of a token and its alternatives, before any sampling parameter acts.

    Attributes
    ----------
    token, logprob, rank
        Its id, its log probability, and its rank: 1 for the most probable.
    top
        (token, log probability) of the most probable tokens, in order.
    """

    token: _Token
    logprob: float
    rank: int
    top: tuple[tuple[_Token, float], ...] = ()


class Scores(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Log probabilities that a pass yields.

    Attributes
    ----------
    token
        Of the sampled token.
    prompt
        Of tokens of the prompt: of the token after each token of the pass.
    """

    token: TokenScore | None = None
    prompt: list[TokenScore] = []


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
    context
        For the last layer, if the sampling needs it: the tokens of the prompt and of the answer so
        far.
    scores
        Set by the engine after the last layer, if the sampling asks for log probabilities.
    """

    request: Hashable
    position: int
    num_tokens: int
    payload: Payload
    wants_token: bool = True
    sampling: Sampling = GREEDY
    context: Sequence[int] = ()
    scores: Scores | None = None


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
