"""The torch engine: Llama-type models on any torch device, with torch and safetensors only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from helixreal.engines.checkpoint import Weights
from helixreal.engines.engine import Buffer, EngineSpec, Payload, Row
from helixreal.engines.failures import EngineLostError
from helixreal.engines.grammar import Grammars
from helixreal.engines.layer_shard import (
    LayerShard,
    open_weights,
    too_little_memory,
    torch_device,
)
from helixreal.engines.llama import RmsNorm
from helixreal.engines.model_config import VALUE_BYTES, LlamaConfig, read_llama_config
from helixreal.engines.paged_attention import Span
from helixreal.engines.ranks import Ranks, check_devices
from helixreal.engines.sampling import sample_rows
from helixreal.engines.sharding import Shard, check_ranks
from helixreal.engines.torch_device import DeviceCopies, wait_for
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import InputError


class TorchEngine:
    """Runs layers of a Llama-type model; see :class:`~helixreal.engines.engine.Engine`.

    Hidden states are tensors of shape (tokens, hidden size), the residual stream itself: one
    process and several processes compute the same values.

    With several devices, each holds a part of every layer (tensor parallelism). This process is
    the first rank; it also holds the embedding and the head, and sends each step to the others.

    Parameters
    ----------
    spec
        Layers, model and devices. There are no `options`.

    Raises
    ------
    InputError
        If the model, a device or the data type cannot be used, the memory for KV caches is too
        small for one block, or a device has too little memory.
    """

    def __init__(self, spec: EngineSpec) -> None:
        if spec.model is None:
            raise InputError("engine 'torch' needs the folder of a model")
        file = Path(spec.model) / "config.json"
        config = read_llama_config(spec.model)
        if config.num_layers != spec.num_layers:
            raise InputError(
                f"the model has {config.num_layers} layers, but the scenario's LLM has "
                f"{spec.num_layers}",
                file=file,
            )
        check_devices(spec.devices)
        check_ranks(config, len(spec.devices), file)
        self._spec = spec
        self._dtype = _dtype(spec.dtype)
        self._device = torch_device(spec.devices[0])
        self._hidden_size = config.hidden_size
        self.vocabulary = config.vocab_size
        self.block_tokens = spec.block_tokens
        self._copies = DeviceCopies(self._device)
        self._grammars = Grammars(spec.model)
        self.wire_bytes_per_token = config.hidden_size * VALUE_BYTES[spec.dtype]
        self._ranks = Ranks(spec) if len(spec.devices) > 1 else None
        try:
            self.kv_blocks = self._load(config)
        except torch.OutOfMemoryError as error:
            self.close()
            raise too_little_memory(spec, spec.devices[0]) from error
        except BaseException:
            self.close()
            raise
        self.kv = PrefixCache(self.kv_blocks, spec.block_tokens, clear=self._clear_blocks)

    def _load(self, config: LlamaConfig) -> int:
        """Load the weights and allocate KV blocks; their number."""
        spec, ranks = self._spec, self._ranks
        shard = Shard(0, len(spec.devices))
        with open_weights(spec, self._device) as weights, torch.inference_mode():
            self._load_ends(weights, config)
            self._layers = LayerShard(spec, weights, config, self._device, shard)
        num_blocks = self._layers.room()
        if ranks is not None:
            num_blocks = ranks.agree(num_blocks)
        self._layers.allocate(num_blocks)
        return num_blocks

    def _load_ends(self, weights: Weights, config: LlamaConfig) -> None:
        """Load the embedding, the last norm and the head, if its layers need them."""
        spec = self._spec
        is_last = spec.end_layer == config.num_layers
        self._embedding = self._norm = self._head = None
        table = (config.vocab_size, config.hidden_size)
        embedding = None
        if spec.start_layer == 0 or (is_last and config.tied):
            embedding = weights.take("model.embed_tokens.weight", table)
        if spec.start_layer == 0:
            self._embedding = embedding
        if is_last:
            self._norm = RmsNorm(weights, config, "model.norm")
            self._head = embedding if config.tied else weights.take("lm_head.weight", table)

    @property
    def lost(self) -> str | None:
        """Why the engine cannot go on, if one of its ranks has ended."""
        return None if self._ranks is None else self._ranks.lost

    def _clear_blocks(self, blocks: Sequence[int]) -> None:
        if self._ranks is not None:
            self._ranks.clear(blocks)
        self._layers.clear(blocks)

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch whose KV blocks are allocated."""
        if not rows:
            return []
        with torch.inference_mode():
            hidden = self._entering(rows, start_layer)
            spans = [Span(row.position, row.num_tokens, self.kv.table(row.request)) for row in rows]
            hidden = self._through(hidden, spans, start_layer, end_layer)
            if end_layer == self._spec.num_layers:
                tokens = self._tokens(hidden, rows)
                wait_for(self._device)
                return tokens
            wait_for(self._device)
            return list(hidden.split([row.num_tokens for row in rows]))

    def _through(
        self, hidden: torch.Tensor, spans: Sequence[Span], start_layer: int, end_layer: int
    ) -> torch.Tensor:
        """Run layers, on all ranks."""
        batch = self._layers.describe(spans)
        ranks = self._ranks
        if ranks is None:
            return self._layers.run(hidden, batch, start_layer, end_layer, lambda part: part)
        # From here on the ranks must do the same: after an error they would not.
        try:
            ranks.run(spans, start_layer, end_layer)
            hidden = ranks.group.broadcast(hidden)
            return self._layers.run(hidden, batch, start_layer, end_layer, ranks.group.sum)
        except Exception as error:
            raise EngineLostError(ranks.reason_of(error)) from error

    def _entering(self, rows: Sequence[Row], start_layer: int) -> torch.Tensor:
        """Input of the first layer of a pass, of shape (tokens, hidden size)."""
        if start_layer > 0:
            return rows[0].payload if len(rows) == 1 else torch.cat([row.payload for row in rows])
        assert self._embedding is not None, "a pass enters layer 0 only where it is held"
        ids = torch.tensor([token for row in rows for token in row.payload], device=self._device)
        return self._embedding[ids]

    def _tokens(self, hidden: torch.Tensor, rows: Sequence[Row]) -> list[Payload]:
        """Sample a token after the last layer for each row that wants one."""
        norm, head = self._norm, self._head
        assert norm is not None
        assert head is not None

        def logits_of(positions: list[int]) -> torch.Tensor:
            chosen = hidden[torch.tensor(positions, device=self._device)]
            return torch.nn.functional.linear(norm(chosen), head)

        return sample_rows(rows, logits_of, self._grammars)

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """Serialize hidden states of rows to one buffer, row after row."""
        with torch.inference_mode(), self._copies.beside_passes():
            joined = payloads[0] if len(payloads) == 1 else torch.cat(list(payloads))
            return [self._copies.to_buffer(joined)]

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """The inverse of `pack`, given the number of tokens of each row.

        Raises
        ------
        ValueError
            If there is not exactly one buffer, of the size of the tokens' hidden states.
        """
        if len(buffers) != 1:
            raise ValueError(f"{len(buffers)} buffers of hidden states, not 1")
        data = np.frombuffer(buffers[0], dtype=np.uint8)
        expected = sum(num_tokens) * self.wire_bytes_per_token
        if data.size != expected or min(num_tokens, default=1) < 1:
            raise ValueError(
                f"hidden states of {list(num_tokens)} tokens take {expected} bytes, not {data.size}"
            )
        # torch warns of read-only memory, and received memory may be unaligned.
        if not data.flags.writeable or data.ctypes.data % VALUE_BYTES["float32"]:
            data = data.copy()
        with torch.inference_mode(), self._copies.beside_passes():
            values = torch.from_numpy(data).view(self._dtype).view(-1, self._hidden_size)
            return list(self._copies.to_device(values).split(list(num_tokens)))

    def close(self) -> None:
        """Release weights and KV caches, and end the other ranks; it cannot be used afterwards."""
        if self._ranks is not None:
            self._ranks.close()
        if (layers := getattr(self, "_layers", None)) is not None:
            layers.close()
        self._embedding = self._norm = self._head = None


def _dtype(name: str) -> torch.dtype:
    if name not in VALUE_BYTES:
        raise InputError(f"there is no dtype '{name}'; there are {', '.join(VALUE_BYTES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
