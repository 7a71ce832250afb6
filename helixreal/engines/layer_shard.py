"""The layers of a torch engine on one device: all of each layer, or the part of one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from helixreal.engines.checkpoint import Checkpoint, DummyWeights, Weights
from helixreal.engines.engine import EngineSpec
from helixreal.engines.llama import LlamaLayer, Sum, rotary_table
from helixreal.engines.model_config import VALUE_BYTES, LlamaConfig
from helixreal.engines.paged_attention import AttentionBatch, Span
from helixreal.engines.sharding import Shard
from helixsim.errors import InputError

_FREE_SHARE = 0.5
"""Default share of the free memory for KV caches, after the weights are loaded; the rest is for
activations and, on a CPU, for other processes."""


class LayerShard:
    """Layers ``[start_layer, end_layer)`` on one device, with their KV cache.

    Parameters
    ----------
    spec
        The layers, and the settings of the engine.
    weights
        Where the weights come from.
    config
        Config of the model.
    device
        The device.
    shard
        Which part of each layer it holds.
    """

    def __init__(
        self,
        spec: EngineSpec,
        weights: Weights,
        config: LlamaConfig,
        device: torch.device,
        shard: Shard,
    ) -> None:
        self._spec = spec
        self._config = shard.config(config)
        self._device = device
        self._num_ranks = shard.num_ranks
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        # In 16 bits, torch would prefer cuDNN's attention, which makes a plan for every new
        # shape: contexts grow with each token, so that nearly every step waits for one.
        torch.backends.cuda.enable_cudnn_sdp(False)
        with torch.inference_mode():
            self._layers = {
                index: LlamaLayer(weights, config, index, shard)
                for index in range(spec.start_layer, spec.end_layer)
            }
            self._rotary = rotary_table(config, spec.max_context_tokens, device, self._dtype)
        self._cache = torch.empty(0)

    def room(self) -> int:
        """Number of KV blocks for which this device has memory.

        Raises
        ------
        InputError
            If it is less than one.
        """
        spec = self._spec
        token_bytes = spec.num_held * self._config.kv_values_per_token * VALUE_BYTES[spec.dtype]
        block_bytes = spec.block_tokens * token_bytes
        if spec.kv_memory_bytes is None:
            memory_bytes = int(_FREE_SHARE * self._free_bytes())
        else:
            memory_bytes = spec.kv_memory_bytes // self._num_ranks
        if memory_bytes < block_bytes:
            raise InputError(
                f"{memory_bytes} bytes for KV caches are less than one block: {spec.block_tokens} "
                f"tokens on {spec.num_held} layers take {block_bytes}"
            )
        return memory_bytes // block_bytes

    def _free_bytes(self) -> int:
        if self._device.type == "cuda":
            # Memory that loading no longer needs counts as free only when torch has returned it.
            torch.cuda.empty_cache()
            free_bytes: int = torch.cuda.mem_get_info(self._device)[0]
            return free_bytes
        # Not every system reports free memory.
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") // self._num_ranks

    def allocate(self, num_blocks: int) -> None:
        """Allocate KV blocks."""
        # Not cleared here: CPU memory is allocated when it is first written.
        self._cache = torch.empty(
            (
                self._spec.num_held,
                2,
                num_blocks,
                self._spec.block_tokens,
                self._config.num_kv_heads,
                self._config.head_dim,
            ),
            dtype=self._dtype,
            device=self._device,
        )

    def clear(self, blocks: Sequence[int]) -> None:
        """Clear allocated blocks.

        Attention multiplies masked values by zero; infinities in old memory would become NaN.
        """
        with torch.inference_mode():
            self._cache[:, :, list(blocks)] = 0

    def describe(self, spans: Sequence[Span]) -> AttentionBatch:
        """A batch, as all layers use it."""
        return AttentionBatch(spans, self._spec.block_tokens, self._rotary)

    def run(
        self,
        hidden: torch.Tensor,
        batch: AttentionBatch,
        start_layer: int,
        end_layer: int,
        sum_ranks: Sum,
    ) -> torch.Tensor:
        """Run the layers ``[start_layer, end_layer)`` on hidden states of all tokens.

        Parameters
        ----------
        hidden
            Of shape (tokens, hidden size), equal on all ranks, as is the result.
        sum_ranks
            Sums a tensor over all ranks.
        """
        for index in range(start_layer, end_layer):
            cache = self._cache[index - self._spec.start_layer]
            hidden = self._layers[index](hidden, batch, cache, sum_ranks)
        return hidden

    def close(self) -> None:
        """Release weights and KV cache."""
        self._layers.clear()
        self._cache = torch.empty(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def too_little_memory(spec: EngineSpec, device: str) -> InputError:
    """The error of an engine whose layers do not fit a device."""
    return InputError(
        f"the device '{device}' has too little free memory for {spec.num_held} layers and their "
        "KV caches; hold fewer layers, or give less memory to the KV caches"
    )


def torch_device(name: str) -> torch.device:
    """A device by name.

    Raises
    ------
    InputError
        If torch cannot use it.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"torch cannot use the device '{name}': {reason}") from error
    return device


@contextmanager
def open_weights(spec: EngineSpec, device: torch.device) -> Iterator[Weights]:
    """The weights of an engine's model, or random ones."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if spec.dummy_weights:
        yield DummyWeights(device, dtype)
        return
    assert spec.model is not None
    with Checkpoint(Path(spec.model), device, dtype) as weights:
        yield weights
