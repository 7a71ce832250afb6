"""A model class for vLLM with some layers of a Llama-type model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer

Hidden = tuple[torch.Tensor, torch.Tensor]
"""Output of a layer, each of shape (tokens, hidden size): its own output, and the residual stream
to which the next norm adds it."""


def _llama_layer(config: VllmConfig, prefix: str) -> nn.Module:
    return LlamaDecoderLayer(vllm_config=config, prefix=prefix)


def _qwen_layer(kind: Callable[..., nn.Module]) -> Callable[[VllmConfig, str], nn.Module]:
    def make(config: VllmConfig, prefix: str) -> nn.Module:
        return kind(
            config=config.model_config.hf_config,
            cache_config=config.cache_config,
            quant_config=config.quant_config,
            prefix=prefix,
        )

    return make


_LAYERS: Mapping[str, Callable[[VllmConfig, str], nn.Module]] = {
    "LlamaForCausalLM": _llama_layer,
    "MistralForCausalLM": _llama_layer,
    "Qwen2ForCausalLM": _qwen_layer(Qwen2DecoderLayer),
    "Qwen3ForCausalLM": _qwen_layer(Qwen3DecoderLayer),
}
ARCHITECTURES = tuple(_LAYERS)
"""Supported architectures, as in config.json."""

# Separate matrices in a checkpoint, one matrix here.
_MERGED = (
    (".q_proj.", ".qkv_proj.", "q"),
    (".k_proj.", ".qkv_proj.", "k"),
    (".v_proj.", ".qkv_proj.", "v"),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)


class HelixStageForCausalLM(nn.Module):
    """The layers ``[start, end)`` of a model, with the names of its checkpoint.

    It has the embedding, the last norm and the head only if its layers need them.

    Parameters
    ----------
    vllm_config
        Its Hugging Face part has ``helix_layers``, ``[start, end]``, and ``helix_architecture``,
        one of `ARCHITECTURES`.
    prefix
        Prefix of the names of its weights.
    """

    packed_modules_mapping = {  # noqa: RUF012  (vLLM reads it from the class)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self._config = config
        self._dtype = vllm_config.model_config.dtype
        self.quant_config = vllm_config.quant_config
        self._start_layer, self._end_layer = config.helix_layers
        name = f"{prefix}." if prefix else ""
        self.model = _Layers(vllm_config, f"{name}model")
        if self._end_layer == config.num_hidden_layers:
            head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{name}lm_head",
            )
            if config.tie_word_embeddings:
                head = head.tie_weights(self.model.embed_tokens)
            self.lm_head = head
            self.logits_processor = LogitsProcessor(
                config.vocab_size, scale=getattr(config, "logit_scale", 1.0)
            )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed tokens; needs layer 0."""
        embedded: torch.Tensor = self.model.embed_tokens(input_ids)
        return embedded

    def run_layers(
        self,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        start_layer: int,
        end_layer: int,
    ) -> Hidden:
        """Run the layers ``[start_layer, end_layer)``.

        Parameters
        ----------
        positions
            Position of each token in its request.
        hidden, residual
            Of shape (tokens, hidden size); before layer 0, residual is None.
        """
        for index in range(start_layer, end_layer):
            hidden, residual = self.model.layers[str(index)](positions, hidden, residual)
        assert residual is not None, "at least one layer has run"
        return hidden, residual

    def last_norm(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Input of the output head; needs the last layer."""
        normed: torch.Tensor = self.model.norm(hidden, residual)[0]
        return normed

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,  # noqa: ANN401  (vLLM's signature)
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run all layers of the stage; vLLM calls it to measure its memory."""
        if self._start_layer == 0:
            hidden, residual = self.embed_input_ids(input_ids), None
        else:
            shape = (*positions.shape, self._config.hidden_size)
            hidden = torch.zeros(shape, dtype=self._dtype, device=positions.device)
            residual = torch.zeros_like(hidden)
        hidden, residual = self.run_layers(
            positions, hidden, residual, self._start_layer, self._end_layer
        )
        if self._end_layer == self._config.num_hidden_layers:
            return self.last_norm(hidden, residual)
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of shape (tokens, vocabulary); without a head, zeros for vLLM's measurement."""
        if self._end_layer < self._config.num_hidden_layers:
            return hidden_states.new_zeros(len(hidden_states), self._config.vocab_size)
        logits: torch.Tensor = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the weights of the stage's layers from all weights of the model; their names.

        Raises
        ------
        ValueError
            If weights are missing.
        """
        parameters = dict(self.named_parameters())
        num_parts: Counter[str] = Counter()
        for source, weight in weights:
            name, shard = _merged(source)
            if name not in parameters:
                continue
            load = getattr(parameters[name], "weight_loader", default_weight_loader)
            load(parameters[name], weight, *([] if shard is None else [shard]))
            num_parts[name] += 1
        # vLLM does not report missing weights of linear layers. Quantized layers may have
        # parameters that are not in a checkpoint.
        if self.quant_config is None:
            missing = [name for name in parameters if num_parts[name] < _parts_of(name)]
            if missing:
                raise ValueError(f"weights are missing: {', '.join(missing)}")
        return set(num_parts)


class _Layers(nn.Module):
    """The part with the name ``model`` in checkpoints."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        start, end = config.helix_layers
        is_last = end == config.num_hidden_layers
        if start == 0 or (is_last and config.tie_word_embeddings):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
        make_layer = _LAYERS[config.helix_architecture]
        self.layers = nn.ModuleDict(
            {
                str(index): make_layer(vllm_config, f"{prefix}.layers.{index}")
                for index in range(start, end)
            }
        )
        if is_last:
            self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def _merged(name: str) -> tuple[str, str | int | None]:
    """Name of the matrix that contains a weight, and the weight's part of it."""
    for part, whole, shard in _MERGED:
        if part in name:
            return name.replace(part, whole), shard
    return name, None


def _parts_of(name: str) -> int:
    return max(1, sum(whole in name for _, whole, _ in _MERGED))
