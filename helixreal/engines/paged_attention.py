"""Attention of a packed batch over KV caches in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

_GROUP_TOKENS = 65_536
"""Limit of the padded context that decodes gather at once, which bounds their memory."""
_CPU_GROUP_TOKENS = 4_096
"""The same on a CPU, where large copies exceed the processor's caches and are allocated each time:
128 decodes of 512 tokens took 2.6 times as long with the larger limit."""


@dataclass(frozen=True, slots=True)
class Span:
    """One request's tokens in a batch.

    Attributes
    ----------
    position
        Tokens in its KV cache before the batch.
    num_tokens
        Tokens in the batch.
    blocks
        Its KV blocks in order, enough for all its tokens.
    """

    position: int
    num_tokens: int
    blocks: Sequence[int]

    @property
    def context(self) -> int:
        """Tokens in its KV cache after the batch."""
        return self.position + self.num_tokens


class AttentionBatch:
    """Positions, cache slots and groups of a packed batch; made once, used by every layer.

    Parameters
    ----------
    spans
        The requests, in the order of their tokens.
    block_tokens
        Tokens in a block.
    rotary
        Cosines and sines of every position, each of shape (positions, head size).
    """

    def __init__(
        self, spans: Sequence[Span], block_tokens: int, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        cos, sin = rotary
        device = cos.device
        positions: list[np.ndarray | list[int]] = []
        slots: list[np.ndarray | list[int]] = []
        prompts: list[_Prompt] = []
        decodes: list[tuple[int, Span]] = []
        first = 0
        for span in spans:
            positions.append(_positions(span))
            slots.append(_slots(span, block_tokens))
            if span.num_tokens == 1:
                decodes.append((first, span))
            else:
                prompts.append(_Prompt(first, span, block_tokens, device))
            first += span.num_tokens
        most_tokens = _CPU_GROUP_TOKENS if device.type == "cpu" else _GROUP_TOKENS
        at = torch.from_numpy(np.concatenate(positions)).to(device)
        self.cos = cos[at][:, None]
        self.sin = sin[at][:, None]
        self._slots = torch.from_numpy(np.concatenate(slots)).to(device)
        self._parts: list[_Prompt | _Decodes] = [
            *prompts,
            *(
                _Decodes(group, block_tokens, device)
                for group in _groups(decodes, block_tokens, most_tokens)
            ),
        ]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor
    ) -> torch.Tensor:
        """Write keys and values into the cache, and attend to the context of each request.

        Parameters
        ----------
        query
            Of shape (tokens, heads, head size).
        key, value
            Of shape (tokens, KV heads, head size).
        cache
            Of shape (2, blocks, block tokens, KV heads, head size).

        Returns
        -------
        torch.Tensor
            Shaped as `query`.
        """
        for part, new in zip(cache.flatten(1, 2), (key, value), strict=True):
            part.index_copy_(0, self._slots, new)
        result = torch.empty_like(query)
        for part in self._parts:
            part.attend(query, cache, result)
        return result


def _positions(span: Span) -> np.ndarray | list[int]:
    """The position of each token of a request in the batch."""
    if span.num_tokens == 1:  # of many decodes, arrays of one number would take most of the time
        return [span.position]
    return np.arange(span.position, span.context)


def _slots(span: Span, block_tokens: int) -> np.ndarray | list[int]:
    """The cache slot of each token of a request in the batch."""
    assert span.context <= len(span.blocks) * block_tokens, "blocks are allocated"
    first, offset = divmod(span.position, block_tokens)
    if span.num_tokens == 1:
        return [span.blocks[first] * block_tokens + offset]
    blocks = np.array(span.blocks[first : -(-span.context // block_tokens)])
    index, offsets = np.divmod(np.arange(offset, offset + span.num_tokens), block_tokens)
    slots: np.ndarray = blocks[index] * block_tokens + offsets
    return slots


class _Prompt:
    """Several tokens of one request, possibly after tokens in the cache."""

    def __init__(self, first: int, span: Span, block_tokens: int, device: torch.device) -> None:
        self._tokens = slice(first, first + span.num_tokens)
        self._context = span.context
        num_blocks = -(-span.context // block_tokens)
        self._blocks = torch.tensor(span.blocks[:num_blocks], device=device)
        self._mask = None
        if span.position:
            shape = (span.num_tokens, span.context)
            self._mask = torch.ones(shape, dtype=torch.bool, device=device).tril(span.position)

    def attend(self, query: torch.Tensor, cache: torch.Tensor, result: torch.Tensor) -> None:
        gathered = cache.index_select(1, self._blocks).flatten(1, 2)[:, : self._context]
        num_kv_heads, head_dim = gathered.shape[2:]
        # (KV heads, queries of a KV head, tokens, head size): no copies of keys and values.
        rows = query[self._tokens].unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
        keys, values = gathered.transpose(1, 2)[:, :, None].expand(
            -1, -1, rows.shape[1], -1, head_dim
        )
        attended = functional.scaled_dot_product_attention(
            rows, keys, values, attn_mask=self._mask, is_causal=self._mask is None
        )
        result[self._tokens] = attended.permute(2, 0, 1, 3).flatten(1, 2)


class _Decodes:
    """One token each of several requests, their contexts padded to the longest."""

    def __init__(
        self, decodes: Sequence[tuple[int, Span]], block_tokens: int, device: torch.device
    ) -> None:
        spans = [span for _, span in decodes]
        width = max(-(-span.context // block_tokens) for span in spans)
        # Padding repeats the request's first block, so that no other request's blocks are read.
        table = np.empty((len(spans), width), dtype=np.int64)
        for row, span in zip(table, spans, strict=True):
            used = span.blocks[:width]
            row[: len(used)] = used
            row[len(used) :] = used[0]
        self._blocks = torch.from_numpy(table).to(device)
        self._tokens = torch.tensor([first for first, _ in decodes], device=device)
        contexts = torch.tensor([span.context for span in spans], device=device)
        reach = torch.arange(width * block_tokens, device=device)
        self._mask = (reach < contexts[:, None])[:, None, None]

    def attend(self, query: torch.Tensor, cache: torch.Tensor, result: torch.Tensor) -> None:
        gathered = cache.index_select(1, self._blocks.flatten())
        gathered = gathered.unflatten(1, self._blocks.shape).flatten(2, 3)
        # The queries of a KV head take the dimension that SDPA uses for tokens.
        rows = query[self._tokens].unflatten(1, (gathered.shape[3], -1))
        keys, values = gathered.transpose(2, 3)
        attended = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=self._mask)
        result[self._tokens] = attended.flatten(1, 2)


def _groups(
    decodes: Sequence[tuple[int, Span]], block_tokens: int, most_tokens: int
) -> Iterable[list[tuple[int, Span]]]:
    """Group decodes of similar context, which reduces padding."""
    group: list[tuple[int, Span]] = []
    longest = 0
    for decode in sorted(decodes, key=lambda decode: -decode[1].context):
        context = decode[1].context
        if group and (
            2 * context + block_tokens < longest or (len(group) + 1) * longest > most_tokens
        ):
            yield group
            group = []
        if not group:
            longest = context
        group.append(decode)
    if group:
        yield group
