"""The torch engine: Llama-type models on any torch device, with torch and safetensors only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from helixreal.engines.checkpoint import Checkpoint, DummyWeights, Weights
from helixreal.engines.engine import Buffer, EngineSpec, Payload, Row
from helixreal.engines.grammar import Grammars
from helixreal.engines.llama import LlamaLayer, RmsNorm, rotary_table
from helixreal.engines.model_config import VALUE_BYTES, LlamaConfig, read_llama_config
from helixreal.engines.paged_attention import AttentionBatch, Span
from helixreal.engines.sampling import sample_rows
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import InputError

_FREE_SHARE = 0.5
"""Default share of the free memory for KV caches, after the weights are loaded; the rest is for
activations and, on a CPU, for other processes."""


class TorchEngine:
    """Runs layers of a Llama-type model; see :class:`~helixreal.engines.engine.Engine`.

    Hidden states are tensors of shape (tokens, hidden size), the residual stream itself: one
    process and several processes compute the same values.

    Parameters
    ----------
    spec
        Layers, model and device. There are no `options`.

    Raises
    ------
    InputError
        If the model, the device or the data type cannot be used, or the memory for KV caches is
        too small for one block.
    """

    def __init__(self, spec: EngineSpec) -> None:
        if spec.model is None:
            raise InputError("engine 'torch' needs the folder of a model")
        config = read_llama_config(spec.model)
        if config.num_layers != spec.num_layers:
            raise InputError(
                f"the model has {config.num_layers} layers, but the scenario's LLM has "
                f"{spec.num_layers}",
                file=Path(spec.model) / "config.json",
            )
        self._spec = spec
        self._device = _device(spec.device)
        self._dtype = _dtype(spec.dtype)
        self._hidden_size = config.hidden_size
        self._grammars = Grammars(spec.model)
        with torch.inference_mode():
            self._load(spec, spec.model, config)
            self._rotary = rotary_table(config, spec.max_context_tokens, self._device, self._dtype)
            self._allocate(config)
        self.wire_bytes_per_token = config.hidden_size * VALUE_BYTES[spec.dtype]

    def _load(self, spec: EngineSpec, model: str, config: LlamaConfig) -> None:
        is_last = spec.end_layer == config.num_layers
        self._embedding = self._norm = self._head = None
        with ExitStack() as stack:
            weights: Weights
            if spec.dummy_weights:
                weights = DummyWeights(self._device, self._dtype)
            else:
                weights = stack.enter_context(Checkpoint(Path(model), self._device, self._dtype))
            table = (config.vocab_size, config.hidden_size)
            embedding = None
            if spec.start_layer == 0 or (is_last and config.tied):
                embedding = weights.take("model.embed_tokens.weight", table)
            if spec.start_layer == 0:
                self._embedding = embedding
            self._layers = {
                index: LlamaLayer(weights, config, index)
                for index in range(spec.start_layer, spec.end_layer)
            }
            if is_last:
                self._norm = RmsNorm(weights, config, "model.norm")
                self._head = embedding if config.tied else weights.take("lm_head.weight", table)

    def _allocate(self, config: LlamaConfig) -> None:
        spec = self._spec
        token_bytes = spec.num_held * config.kv_values_per_token * VALUE_BYTES[spec.dtype]
        block_bytes = spec.block_tokens * token_bytes
        memory_bytes = spec.kv_memory_bytes
        if memory_bytes is None:
            memory_bytes = int(_FREE_SHARE * _free_bytes(self._device))
        self.kv_blocks = memory_bytes // block_bytes
        self.block_tokens = spec.block_tokens
        if self.kv_blocks == 0:
            raise InputError(
                f"{memory_bytes} bytes for KV caches are less than one block: {spec.block_tokens} "
                f"tokens on {spec.num_held} layers take {block_bytes}"
            )
        self.kv = PrefixCache(self.kv_blocks, spec.block_tokens, clear=self._clear_blocks)
        # Not cleared here: CPU memory is allocated when it is first written.
        self._cache = torch.empty(
            (
                spec.num_held,
                2,
                self.kv_blocks,
                spec.block_tokens,
                config.num_kv_heads,
                config.head_dim,
            ),
            dtype=self._dtype,
            device=self._device,
        )

    def _clear_blocks(self, blocks: Sequence[int]) -> None:
        """Clear allocated blocks.

        Attention multiplies masked values by zero; infinities in old memory would become NaN.
        """
        with torch.inference_mode():
            self._cache[:, :, list(blocks)] = 0

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch whose KV blocks are allocated."""
        if not rows:
            return []
        with torch.inference_mode():
            hidden = self._entering(rows, start_layer)
            spans = [Span(row.position, row.num_tokens, self.kv.table(row.request)) for row in rows]
            batch = AttentionBatch(spans, self.block_tokens, self._rotary)
            for index in range(start_layer, end_layer):
                cache = self._cache[index - self._spec.start_layer]
                hidden = self._layers[index](hidden, batch, cache)
            if end_layer == self._spec.num_layers:
                return self._tokens(hidden, rows)
            return list(hidden.split([row.num_tokens for row in rows]))

    def _entering(self, rows: Sequence[Row], start_layer: int) -> torch.Tensor:
        """Input of the first layer of a pass, of shape (tokens, hidden size)."""
        if start_layer > 0:
            return rows[0].payload if len(rows) == 1 else torch.cat([row.payload for row in rows])
        assert self._embedding is not None, "a pass enters layer 0 only where it is held"
        ids = torch.tensor([token for row in rows for token in row.payload], device=self._device)
        return self._embedding[ids]

    def _tokens(self, hidden: torch.Tensor, rows: Sequence[Row]) -> list[int | None]:
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
        with torch.inference_mode():
            joined = payloads[0] if len(payloads) == 1 else torch.cat(list(payloads))
            values = joined.contiguous().cpu().view(torch.uint8).numpy()
        return [memoryview(values).cast("B")]

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
        with torch.inference_mode():
            values = torch.from_numpy(data).view(self._dtype).view(-1, self._hidden_size)
            return list(values.to(self._device).split(list(num_tokens)))

    def close(self) -> None:
        """Release weights and KV caches; the engine cannot be used afterwards."""
        self._layers.clear()
        self._embedding = self._norm = self._head = None
        self._cache = torch.empty(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"torch cannot use the device '{name}': {reason}") from error
    return device


def _dtype(name: str) -> torch.dtype:
    if name not in VALUE_BYTES:
        raise InputError(f"there is no dtype '{name}'; there are {', '.join(VALUE_BYTES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free_bytes: int = torch.cuda.mem_get_info(device)[0]
        return free_bytes
    # Not every system reports free memory.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
