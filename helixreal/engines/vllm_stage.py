"""Runs layers on vLLM. Only this module uses interfaces that vLLM may change between releases.

vLLM's ``LLM`` loads weights, chooses the attention back end, and sizes and allocates KV caches, for
the model class :class:`.vllm_model.HelixStageForCausalLM` with some of the layers. Its scheduler is
not used: this module describes batches to the attention back end and runs the layers directly.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakSet

import torch
from vllm import LLM, ModelRegistry
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata

from helixreal.engines.vllm_model import HelixStageForCausalLM, Hidden
from helixsim.errors import InputError

_ARCHITECTURE = HelixStageForCausalLM.__name__
_METADATA_FIELDS = frozenset(field.name for field in fields(CommonAttentionMetadata))

# vLLM keeps global state during a start, a pass or a shutdown.
_ONE_AT_A_TIME = threading.Lock()

_open_stages: WeakSet[VllmStage] = WeakSet()
"""The last one to close ends what stages share: vLLM's process groups."""

DEVICE_TYPE: str = current_platform.device_type
"""Device type of the installed vLLM: ``cpu``, ``cuda``, ..."""


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one request in a batch.

    Attributes
    ----------
    position
        Tokens in the KV cache before the batch.
    num_tokens
        Tokens in the batch.
    blocks
        Its KV blocks in order, enough for all its tokens.
    """

    position: int
    num_tokens: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class StageBatch:
    """A batch in the form that vLLM's attention needs; used by all layers.

    Attributes
    ----------
    num_tokens
        Tokens of all requests.
    positions
        Position of each token in its request.
    slots
        Cache slot of each token: block number times tokens of a block, plus the offset.
    metadata
        Metadata of the attention back end.
    """

    num_tokens: int
    positions: torch.Tensor
    slots: torch.Tensor
    metadata: Any


class LoadedLayers:
    """The layers ``[start_layer, end_layer)`` of a model, or one rank's part, on a vLLM worker.

    Parameters
    ----------
    worker
        A worker of vLLM that has loaded :class:`.vllm_model.HelixStageForCausalLM`.

    Attributes
    ----------
    num_blocks
        Number of allocated KV blocks; block 0 is for padding.
    block_tokens
        Tokens of a KV block.
    device, dtype, hidden_size
        Device, data type and size of hidden states.
    vocabulary
        Number of token ids.
    """

    def __init__(self, worker: Any) -> None:  # noqa: ANN401  (vLLM has several kinds)
        self._model: HelixStageForCausalLM = worker.get_model()
        self._config = worker.vllm_config
        model_config = self._config.model_config
        self.device: torch.device = worker.device
        self.dtype: torch.dtype = model_config.dtype
        self.hidden_size: int = model_config.hf_config.hidden_size
        self.vocabulary: int = model_config.hf_config.vocab_size
        self.num_blocks: int = self._config.cache_config.num_gpu_blocks
        self.block_tokens: int = self._config.cache_config.block_size
        self._layer_names = {
            index: f"model.layers.{index}.self_attn.attn"
            for index in range(*model_config.hf_config.helix_layers)
        }
        self._attention = get_layers_from_vllm_config(self._config, Attention)
        self._builder = self._make_builder()

    def _make_builder(self) -> Any:  # noqa: ANN401  (vLLM's metadata builder)
        """The builder of the attention back end's metadata, one for all layers."""
        layers = self._attention
        assert set(layers) == set(self._layer_names.values())
        kinds = {
            (layer.get_attn_backend(), layer.get_kv_cache_spec(self._config))
            for layer in layers.values()
        }
        if len(kinds) > 1:
            raise InputError("engine 'vllm' cannot serve layers of different kinds of attention")
        ((backend, kv_cache_spec),) = kinds
        if kv_cache_spec.block_size != self.block_tokens:
            raise InputError("engine 'vllm' cannot serve this model's kind of attention")
        sizes = backend.get_supported_kernel_block_sizes()
        # Other sizes would be split into blocks of a size that the back end supports.
        if not any(
            self.block_tokens == size
            if isinstance(size, int)
            else self.block_tokens % size.base == 0
            for size in sizes
        ):
            raise InputError(
                f"block_tokens: vLLM's attention supports {sizes}, not {self.block_tokens}"
            )
        with set_current_vllm_config(self._config):
            return backend.get_builder_cls()(kv_cache_spec, list(layers), self._config, self.device)

    def describe(self, spans: Sequence[Span]) -> StageBatch:
        """Describe a batch in which the tokens of the requests are concatenated."""
        counts = torch.tensor([span.num_tokens for span in spans], dtype=torch.int32)
        befores = torch.tensor([span.position for span in spans], dtype=torch.int32)
        starts = torch.zeros(len(spans) + 1, dtype=torch.int32)
        torch.cumsum(counts, 0, out=starts[1:])
        lengths = befores + counts
        longest = int(lengths.max())
        width = -(-longest // self.block_tokens)
        table = torch.zeros(len(spans), width, dtype=torch.int32)
        for row, span in enumerate(spans):
            used = span.blocks[:width]
            table[row, : len(used)] = torch.tensor(used, dtype=torch.int32)
        num_tokens = int(starts[-1])
        rows = torch.repeat_interleave(torch.arange(len(spans)), counts, output_size=num_tokens)
        positions = torch.arange(num_tokens) - starts[rows] + befores[rows]
        block_numbers = table[rows, positions // self.block_tokens].long()
        slots = block_numbers * self.block_tokens + positions % self.block_tokens
        positions, slots = positions.to(self.device), slots.to(self.device)
        described = {
            "query_start_loc": starts.to(self.device),
            "query_start_loc_cpu": starts,
            "seq_lens": lengths.to(self.device),
            "seq_lens_cpu_upper_bound": lengths,
            "_seq_lens_cpu": lengths,
            "_num_computed_tokens_cpu": befores,
            "num_reqs": len(spans),
            "num_actual_tokens": num_tokens,
            "max_query_len": int(counts.max()),
            "max_seq_len": longest,
            "block_table_tensor": table.to(self.device),
            "slot_mapping": slots,
            "positions": positions,
        }
        # Releases of vLLM differ in the values that they need on the CPU.
        known = {name: value for name, value in described.items() if name in _METADATA_FIELDS}
        metadata = self._builder.build(0, CommonAttentionMetadata(**known))
        return StageBatch(num_tokens, positions, slots, metadata)

    def run(
        self,
        spans: Sequence[Span],
        entering: list[int] | Hidden,
        start_layer: int,
        end_layer: int,
    ) -> Hidden:
        """Run the layers ``[start_layer, end_layer)``.

        Parameters
        ----------
        spans
            The requests of the batch.
        entering
            Token ids before layer 0; hidden states of shape (tokens, hidden size) elsewhere, which
            vLLM's norms write into.
        """
        batch = self.describe(spans)
        residual: torch.Tensor | None
        if isinstance(entering, list):
            hidden = self._model.embed_input_ids(torch.tensor(entering, device=self.device))
            residual = None
        else:
            hidden, residual = (part.to(self.device) for part in entering)
        names = [self._layer_names[index] for index in range(start_layer, end_layer)]
        with (
            _ONE_AT_A_TIME,
            set_forward_context(
                dict.fromkeys(names, batch.metadata),
                self._config,
                num_tokens=batch.num_tokens,
                slot_mapping=dict.fromkeys(names, batch.slots),
            ),
        ):
            return self._model.run_layers(batch.positions, hidden, residual, start_layer, end_layer)

    def logits(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Logits of shape (tokens, vocabulary) for hidden states after the last layer."""
        hidden, residual = hidden.to(self.device), residual.to(self.device)
        with _ONE_AT_A_TIME, set_forward_context(None, self._config, num_tokens=len(hidden)):
            return self._model.compute_logits(self._model.last_norm(hidden, residual))

    def clear(self, blocks: Sequence[int]) -> None:
        """Clear KV blocks on a CPU, where the values of earlier requests would do harm."""
        # The CPU's attention multiplies masked values by zero; infinities would become NaN.
        if not blocks or self.device.type != "cpu":
            return
        with torch.inference_mode():
            for layer in self._attention.values():
                cache = layer.kv_cache
                cache.movedim(cache.shape.index(self.num_blocks), 0)[list(blocks)] = 0


def register_model() -> None:
    """Make the model class known to vLLM, in every process that loads it."""
    ModelRegistry.register_model(_ARCHITECTURE, HelixStageForCausalLM)


def start_llm(
    model: str,
    architecture: str,
    start_layer: int,
    end_layer: int,
    arguments: Mapping[str, Any],
) -> LLM:
    """Let vLLM load layers and allocate KV caches.

    Parameters
    ----------
    model
        Folder of the model.
    architecture
        One of `vllm_model.ARCHITECTURES`.
    start_layer, end_layer
        The layers to load.
    arguments
        Additional arguments of ``LLM``.
    """
    register_model()
    with _ONE_AT_A_TIME:
        return LLM(
            model,
            hf_overrides={
                "architectures": [_ARCHITECTURE],
                "helix_architecture": architecture,
                "helix_layers": [start_layer, end_layer],
            },
            config_format="hf",
            generation_config="vllm",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **arguments,
        )


class VllmStage(LoadedLayers):
    """Layers in this process, on one device.

    Parameters
    ----------
    llm
        As :func:`start_llm` returns it.
    """

    lost: str | None = None

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        with _ONE_AT_A_TIME:
            (worker,) = llm.collective_rpc(lambda worker: worker)
            super().__init__(worker)
            _open_stages.add(self)

    def close(self) -> None:
        """Release weights and KV caches; the stage cannot be used afterwards."""
        with _ONE_AT_A_TIME:
            _open_stages.discard(self)
            if _open_stages:
                self._llm.collective_rpc(lambda worker: worker.shutdown())
            else:
                self._llm.llm_engine.engine_core.shutdown()
            del self._llm, self._model, self._attention, self._builder, self._config
            # A GPU's memory is free for the next engine when no object refers to it.
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
