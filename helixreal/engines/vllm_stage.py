"""Some layers of a Llama-type model within vLLM, and everything of vLLM that is not public.

vLLM loads the weights, sizes and allocates the KV caches and runs the kernels. What differs from
its own use is here: a model class that holds only layers ``[start, end)``, and the metadata of
attention, made without vLLM's scheduler, whose types change between releases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import (
    VllmConfig,
    get_layers_from_vllm_config,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.v1.attention.backend import CommonAttentionMetadata

ARCHITECTURE = "HelixStageForCausalLM"
_PARTS = (
    (".q_proj.", ".qkv_proj.", "q"),
    (".k_proj.", ".qkv_proj.", "k"),
    (".v_proj.", ".qkv_proj.", "v"),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)
"""Weights of a checkpoint that vLLM keeps side by side in one."""


class _Layers(nn.Module):  # type: ignore[misc,unused-ignore]
    """What a checkpoint has under ``model.``, as far as this stage holds it."""

    def __init__(self, vllm_config: VllmConfig, start: int, end: int) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        if start == 0:
            self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict(
            {
                str(number): LlamaDecoderLayer(vllm_config, prefix=f"model.layers.{number}")
                for number in range(start, end)
            }
        )
        if end == config.num_hidden_layers:
            self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class HelixStageForCausalLM(nn.Module):  # type: ignore[misc,unused-ignore]
    """The layers ``hf_config.helix_layers`` of a Llama, with embedding and head where owned."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        self.start, self.end = config.helix_layers
        self.model = _Layers(vllm_config, self.start, self.end)
        self.is_last = self.end == config.num_hidden_layers
        if self.is_last:
            self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
            self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states of tokens; on stages that do not begin with layer 0, blank ones."""
        if self.start == 0:
            embedded: torch.Tensor = self.model.embed_tokens(input_ids)
            return embedded
        weight = next(self.parameters())
        return torch.zeros(
            len(input_ids), self.config.hidden_size, dtype=weight.dtype, device=weight.device
        )

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,  # noqa: ANN401  (vLLM's own signature)
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What vLLM calls to measure the memory that a step takes; steps use `run`."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        hidden, residual = self.run(positions, inputs_embeds, None, self.start, self.end)
        return hidden + residual

    def run(
        self,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        start: int,
        end: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layers ``[start, end)``; vLLM keeps the residual apart from the hidden state."""
        for number in range(start, end):
            hidden, residual = self.model.layers[str(number)](positions, hidden, residual)
        assert residual is not None
        return hidden, residual

    def finish(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Logits of what is through the last layer."""
        normed, _ = self.model.norm(hidden, residual)
        logits = self.compute_logits(normed)
        assert logits is not None
        return logits

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of normed hidden states; blank ones on stages without the head."""
        if not self.is_last:
            return hidden_states.new_zeros(len(hidden_states), self.config.vocab_size)
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take those weights of a checkpoint that this stage holds."""
        own = dict(self.named_parameters())
        loaded: set[str] = set()
        for name, weight in weights:
            for target, shard in self._targets(name):
                if target not in own:
                    continue
                parameter = own[target]
                load = getattr(parameter, "weight_loader", default_weight_loader)
                if shard is None:
                    load(parameter, weight)
                else:
                    load(parameter, weight, shard)
                loaded.add(target)
        return loaded

    def _targets(self, name: str) -> list[tuple[str, str | int | None]]:
        """Where a weight of the checkpoint goes: parameters, and which part of them."""
        for part, whole, shard in _PARTS:
            if part in name:
                return [(name.replace(part, whole), shard)]
        targets: list[tuple[str, str | int | None]] = [(name, None)]
        if name == "model.embed_tokens.weight" and self.config.tie_word_embeddings:
            targets.append(("lm_head.weight", None))
        return targets


@dataclass(frozen=True, slots=True)
class StepShape:
    """A batch as attention sees it; rows of one token come first.

    Attributes
    ----------
    positions
        Tokens of each row that the cache holds.
    num_tokens
        Tokens of each row in this step.
    blocks
        Numbers of the cache blocks of each row.
    """

    positions: Sequence[int]
    num_tokens: Sequence[int]
    blocks: Sequence[Sequence[int]]


class Stage:
    """A live worker of vLLM, and steps on it.

    Parameters
    ----------
    worker
        Of an ``LLM`` of one process.
    """

    def __init__(self, worker: Any) -> None:  # noqa: ANN401  (its class depends on the device)
        self.model: HelixStageForCausalLM = worker.get_model()
        self.device: torch.device = worker.device
        self._config: VllmConfig = worker.vllm_config
        cache = self._config.cache_config
        self.block_tokens: int = cache.block_size
        self.num_blocks: int = cache.num_gpu_blocks
        layers = get_layers_from_vllm_config(self._config, Attention)
        self._names = list(layers)
        first = layers[self._names[0]]
        spec = first.get_kv_cache_spec(self._config)
        make_builder = first.get_attn_backend().get_builder_cls()
        with set_current_vllm_config(self._config):
            self._builder = make_builder(spec, self._names, self._config, self.device)

    def run(
        self,
        shape: StepShape,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        start: int,
        end: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run layers on a batch; tensors have as many rows as the batch has tokens."""
        token_positions, metadata = self._metadata(shape)
        built = self._builder.build(common_prefix_len=0, common_attn_metadata=metadata)
        slots = metadata.slot_mapping
        with set_forward_context(
            dict.fromkeys(self._names, built),
            self._config,
            num_tokens=metadata.num_actual_tokens,
            slot_mapping=dict.fromkeys(self._names, slots),
        ):
            return self.model.run(token_positions, hidden, residual, start, end)

    def _metadata(self, shape: StepShape) -> tuple[torch.Tensor, CommonAttentionMetadata]:
        counts = torch.tensor(shape.num_tokens, dtype=torch.int32)
        starts = torch.zeros(len(counts) + 1, dtype=torch.int32)
        torch.cumsum(counts, 0, out=starts[1:])
        held = torch.tensor(shape.positions, dtype=torch.int32)
        seq_lens = held + counts
        width = max(len(blocks) for blocks in shape.blocks)
        table = torch.zeros(len(counts), width, dtype=torch.int32)
        for row, blocks in enumerate(shape.blocks):
            table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        within = torch.arange(len(rows)) - starts[:-1].long()[rows]
        positions = held.long()[rows] + within
        slots = table.long()[rows, positions // self.block_tokens] * self.block_tokens
        slots += positions % self.block_tokens
        device = self.device
        metadata = CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=seq_lens.to(device),
            num_reqs=len(counts),
            num_actual_tokens=len(rows),
            max_query_len=int(counts.max()),
            max_seq_len=int(seq_lens.max()),
            block_table_tensor=table.to(device),
            slot_mapping=slots.to(device),
            causal=True,
        )
        return positions.to(device), metadata
