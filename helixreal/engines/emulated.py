"""The emulated engine computes nothing; its runner waits for the times of the performance model.

Hidden states are zeros of the size of real ones. Tokens are a function of their position.
"""

from __future__ import annotations

from collections.abc import Sequence

from helixreal.engines.engine import Buffer, Payload, Row, RowFailure, Scores, TokenScore
from helixsim.control.kv_cache import KvCache

_VOCABULARY = 32_000

_NO_GRAMMAR = RowFailure("emulated engines follow no grammar")


class EmulatedEngine:
    """Counts KV blocks as simulated nodes do; hidden states and tokens are synthetic.

    Parameters
    ----------
    kv_token_layers
        KV capacity of the node.
    end_layer, num_layers
        End of the node's layers, and number of layers of the LLM.
    bytes_per_token
        Bytes of one token's activation.
    """

    def __init__(
        self, kv_token_layers: int, end_layer: int, num_layers: int, bytes_per_token: float
    ) -> None:
        self.kv = KvCache.by_layer(kv_token_layers, end_layer)
        self.kv_blocks, self.block_tokens = self.kv.num_blocks, self.kv.block_tokens
        self.wire_bytes_per_token = round(bytes_per_token)
        self._num_layers = num_layers
        self._zeros = memoryview(b"")

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Return numbers of tokens as hidden states, and tokens made from their positions."""
        if end_layer < self._num_layers:
            return [row.num_tokens for row in rows]
        for row in rows:
            if row.sampling.logprobs is not None or row.sampling.prompt_logprobs is not None:
                row.scores = _made_up_scores(row)
        return [
            _NO_GRAMMAR if row.sampling.grammar else made_up_token(row.position + row.num_tokens)
            for row in rows
        ]

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """A buffer of zeros of the size of the activations."""
        size = sum(payloads) * self.wire_bytes_per_token
        if len(self._zeros) < size:
            self._zeros = memoryview(bytes(size))
        return [self._zeros[:size]]

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """Check the size of the buffer."""
        size = sum(num_tokens) * self.wire_bytes_per_token
        if len(buffers) != 1 or len(buffers[0]) != size:
            raise ValueError(f"{len(buffers)} buffers; one of {size} bytes was expected")
        return list(num_tokens)

    def close(self) -> None:
        """Nothing to release."""


def made_up_token(position: int) -> int:
    """The token of an emulated engine at a position."""
    return (position * 7919 + 17) % _VOCABULARY


def _made_up_scores(row: Row) -> Scores:
    """Log probabilities of a model that is certain of every token."""
    sampling, end = row.sampling, row.position + row.num_tokens
    scores = Scores(prompt=[])
    if sampling.prompt_logprobs is not None:
        following = row.context[row.position + 1 : sampling.prompt_tokens][: row.num_tokens]
        scores.prompt = [_certain(token, sampling.prompt_logprobs) for token in following]
    if sampling.logprobs is not None and row.wants_token:
        scores.token = _certain(made_up_token(end), sampling.logprobs)
    return scores


def _certain(token: int, num_top: int) -> TokenScore:
    return TokenScore(token, 0.0, 1, ((token, 0.0),) if num_top else ())
