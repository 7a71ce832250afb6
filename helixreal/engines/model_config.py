"""Reads ``config.json`` of Llama-type models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import InputError
from helixsim.llms.config_file import read_config_file
from helixsim.llms.config_values import ConfigValues
from helixsim.profiles.machine import LLM


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model in ``config.json``.

    Attributes
    ----------
    num_layers, vocabulary, max_context_tokens
        Number of layers, size of the vocabulary, and limit of the context.
    """

    num_layers: int
    vocabulary: int
    max_context_tokens: int


def model_facts(folder: Path, llm: LLM) -> ModelFacts:
    """Read the sizes of a model, and check that they match the scenario's LLM.

    Raises
    ------
    InputError
        If there is no such model, or it has another number of layers.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError("there is no such file; give a model folder (Hugging Face)", file=file)
    values = read_config_file(file)
    facts = ModelFacts(
        values.count("num_hidden_layers"),
        values.count("vocab_size"),
        values.count("max_position_embeddings"),
    )
    if facts.num_layers != llm.num_layers:
        raise InputError(
            f"the model has {facts.num_layers} layers, but {llm.name} in the scenario has "
            f"{llm.num_layers}",
            file=file,
            where="num_hidden_layers",
        )
    return facts


VALUE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Data type of weights and activations -> bytes of a value."""

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Scaling of the rotary embedding of Llama 3.1 and later: rope_type ``llama3``.

    Attributes
    ----------
    factor
        Divisor of low frequencies.
    low_freq_factor, high_freq_factor
        Bounds of the blend between scaled and unscaled frequencies.
    original_tokens
        Context length of the original training.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Shapes and constants of a Llama-type model.

    Attributes
    ----------
    num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size
        As the keys of these names in config.json.
    norm_eps
        Added to the mean square in RMS norms.
    tied
        Whether the output head shares the embedding's weights.
    qkv_bias, output_bias, mlp_bias
        Which linear layers have a bias.
    rope_theta
        Base of the rotary embedding's frequencies.
    rope_divisor
        Divisor of all frequencies, for rope_type ``linear``.
    rope_scaling
        Scaling for rope_type ``llama3``, else None.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope_theta: float
    rope_divisor: float = 1.0
    rope_scaling: RopeScaling | None = None

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's weights, by their names below ``model.layers.N.``."""
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        linear = {
            "self_attn.q_proj": (heads, hidden, self.qkv_bias),
            "self_attn.k_proj": (kv_heads, hidden, self.qkv_bias),
            "self_attn.v_proj": (kv_heads, hidden, self.qkv_bias),
            "self_attn.o_proj": (hidden, heads, self.output_bias),
            "mlp.gate_proj": (inner, hidden, self.mlp_bias),
            "mlp.up_proj": (inner, hidden, self.mlp_bias),
            "mlp.down_proj": (hidden, inner, self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        for name, (rows, columns, has_bias) in linear.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{name}.bias"] = (rows,)
        return shapes

    @property
    def layer_values(self) -> int:
        """Number of weights of one layer."""
        return sum(math.prod(shape) for shape in self.layer_shapes.values())

    @property
    def kv_values_per_token(self) -> int:
        """Number of key and value elements of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim


def read_llama_config(model: str | Path) -> LlamaConfig:
    """Read config.json.

    Parameters
    ----------
    model
        Folder of the model.

    Raises
    ------
    InputError
        If there is no such file, or the type of the model is not supported.
    """
    return _Reader(read_config_file(Path(model) / "config.json")).config()


class _Reader:
    """Reads what the engine supports."""

    def __init__(self, values: ConfigValues) -> None:
        self._values = values

    def config(self) -> LlamaConfig:
        architecture = self._check_supported()
        hidden_size = self._values.count("hidden_size")
        num_heads = self._values.count("num_attention_heads")
        num_kv_heads = self._values.count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise self._values.error(
                "num_key_value_heads", f"{num_kv_heads} does not divide {num_heads} heads"
            )
        head_dim = self._values.count("head_dim", hidden_size // num_heads)
        if head_dim % 2:
            raise self._values.error("head_dim", f"must be even, not {head_dim}")
        attention_bias = self._values.flag("attention_bias")
        is_qwen = architecture == "Qwen2ForCausalLM"
        return LlamaConfig(
            num_layers=self._values.count("num_hidden_layers"),
            hidden_size=hidden_size,
            intermediate_size=self._values.count("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._values.count("vocab_size"),
            norm_eps=self._values.real("rms_norm_eps", 1e-6),
            tied=self._values.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or is_qwen,
            output_bias=attention_bias and not is_qwen,
            mlp_bias=self._values.flag("mlp_bias"),
            **self._rope(),
        )

    def _check_supported(self) -> str:
        architectures = self._values.items("architectures") or ["none"]
        architecture = str(architectures[0])
        if architecture not in _ARCHITECTURES:
            raise self._values.error(
                "architectures", f"{architecture} is not supported; {', '.join(_ARCHITECTURES)} are"
            )
        activation = self._values.text("hidden_act") or "silu"
        if activation != "silu":
            raise self._values.error("hidden_act", f"{activation} is not supported; silu is")
        if self._values.get("quantization_config"):
            raise self._values.error("quantization_config", "quantized weights are not supported")
        uses_window = architecture == "MistralForCausalLM" or self._values.get("use_sliding_window")
        if uses_window and self._values.get("sliding_window"):
            raise self._values.error("sliding_window", "a sliding window is not supported")
        return architecture

    def _rope(self) -> dict[str, Any]:
        # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
        key = "rope_parameters" if self._values.get("rope_parameters") else "rope_scaling"
        theta = self._values.real("rope_theta", 10000.0)
        scaling = self._values.below(key)
        if scaling is None:
            return {"rope_theta": theta}
        theta = scaling.real("rope_theta", theta)
        if scaling.real("partial_rotary_factor", 1.0) != 1.0:
            raise scaling.error("partial_rotary_factor", "only 1 is supported")
        kind = scaling.text("rope_type") or scaling.text("type") or "default"
        if kind == "default":
            return {"rope_theta": theta}
        if kind == "linear":
            return {"rope_theta": theta, "rope_divisor": scaling.real("factor")}
        if kind != "llama3":
            message = f"rope_type {kind} is not supported; llama3 and linear are"
            raise self._values.error(key, message)
        return {
            "rope_theta": theta,
            "rope_scaling": RopeScaling(
                factor=scaling.real("factor"),
                low_freq_factor=scaling.real("low_freq_factor"),
                high_freq_factor=scaling.real("high_freq_factor"),
                original_tokens=int(scaling.real("original_max_position_embeddings")),
            ),
        }
