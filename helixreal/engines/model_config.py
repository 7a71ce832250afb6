"""Reads ``config.json`` of Llama-type models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import InputError
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
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}; give a model folder (Hugging Face format)",
            file=file,
        ) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", file=file) from error

    def number(key: str) -> int:
        value: Any = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError("must be a whole number above zero", file=file, where=key)
        return value

    facts = ModelFacts(
        number("num_hidden_layers"), number("vocab_size"), number("max_position_embeddings")
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
    file = Path(model) / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", file=file) from error
    if not isinstance(document, dict):
        raise InputError("must be a mapping", file=file)
    return _Reader(document, file).config()


class _Reader:
    """Reads values of config.json; errors name the key."""

    def __init__(self, document: Mapping[str, Any], file: Path) -> None:
        self._document = document
        self._file = file

    def config(self) -> LlamaConfig:
        architecture = self._check_supported()
        hidden_size = self._count("hidden_size")
        num_heads = self._count("num_attention_heads")
        num_kv_heads = self._count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise self._error(
                "num_key_value_heads", f"{num_kv_heads} does not divide {num_heads} heads"
            )
        head_dim = self._count("head_dim", hidden_size // num_heads)
        if head_dim % 2:
            raise self._error("head_dim", f"must be even, not {head_dim}")
        attention_bias = bool(self._document.get("attention_bias", False))
        is_qwen = architecture == "Qwen2ForCausalLM"
        return LlamaConfig(
            num_layers=self._count("num_hidden_layers"),
            hidden_size=hidden_size,
            intermediate_size=self._count("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._count("vocab_size"),
            norm_eps=self._number(self._document, "rms_norm_eps", 1e-6),
            tied=bool(self._document.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or is_qwen,
            output_bias=attention_bias and not is_qwen,
            mlp_bias=bool(self._document.get("mlp_bias", False)),
            **self._rope(),
        )

    def _check_supported(self) -> str:
        architectures = self._document.get("architectures") or ["none"]
        architecture = str(architectures[0])
        if architecture not in _ARCHITECTURES:
            raise self._error(
                "architectures", f"{architecture} is not supported; {', '.join(_ARCHITECTURES)} are"
            )
        activation = self._document.get("hidden_act", "silu")
        if activation != "silu":
            raise self._error("hidden_act", f"{activation} is not supported; silu is")
        if self._document.get("quantization_config"):
            raise self._error("quantization_config", "quantized weights are not supported")
        uses_window = architecture == "MistralForCausalLM" or self._document.get(
            "use_sliding_window"
        )
        if uses_window and self._document.get("sliding_window"):
            raise self._error("sliding_window", "a sliding window is not supported")
        return architecture

    def _rope(self) -> dict[str, Any]:
        # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
        key = "rope_parameters" if self._document.get("rope_parameters") else "rope_scaling"
        scaling = self._document.get(key) or {}
        if not isinstance(scaling, dict):
            raise self._error(key, "must be a mapping")
        theta = self._number(self._document, "rope_theta", 10000.0)
        theta = self._number(scaling, "rope_theta", theta)
        if scaling.get("partial_rotary_factor", 1.0) != 1.0:
            raise self._error(f"{key}.partial_rotary_factor", "only 1 is supported")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return {"rope_theta": theta}
        if kind == "linear":
            return {"rope_theta": theta, "rope_divisor": self._number(scaling, "factor")}
        if kind != "llama3":
            raise self._error(key, f"rope_type {kind} is not supported; llama3 and linear are")
        return {
            "rope_theta": theta,
            "rope_scaling": RopeScaling(
                factor=self._number(scaling, "factor"),
                low_freq_factor=self._number(scaling, "low_freq_factor"),
                high_freq_factor=self._number(scaling, "high_freq_factor"),
                original_tokens=int(self._number(scaling, "original_max_position_embeddings")),
            ),
        }

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._document.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or value < 1:
            raise self._error(key, "should be a whole number above zero")
        return value

    def _number(self, mapping: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = mapping.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self._error(key, "should be a number above zero")
        return float(value)

    def _error(self, key: str, message: str) -> InputError:
        return InputError(message, file=self._file, where=key)
