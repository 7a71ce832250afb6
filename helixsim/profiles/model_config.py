"""Sizes of an LLM from its Hugging Face ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixsim.errors import InputError

MODEL_TYPES = ("llama", "qwen3", "qwen3_moe")
"""Supported values of ``model_type``."""

_VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of an LLM.

    Attributes
    ----------
    bytes_per_value
        Of weights, hidden states and KV caches.
    layer_values, once_values
        Number of weights of one layer, and of the embedding and the head.
    kv_values
        Keys and values of one token in one layer.
    num_experts, experts_per_token
        Experts of a layer, and how many of them each token uses; 0 without experts.
    """

    num_layers: int
    hidden_size: int
    bytes_per_value: int
    layer_values: int
    once_values: int
    kv_values: int
    num_experts: int = 0
    experts_per_token: int = 0


def read_model_config(path: str | Path) -> ModelSizes:
    """Read the sizes of a Llama, Qwen3 or Qwen3-MoE model.

    Parameters
    ----------
    path
        A ``config.json``, or the folder with it.

    Raises
    ------
    InputError
        If it cannot be read, or is of another kind of model.
    """
    file = Path(path)
    if file.is_dir():
        file /= "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=file) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", file=file) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"is not JSON: {error.msg}", file=file, where=where) from error
    except RecursionError as error:
        raise InputError("is nested too deep", file=file) from error
    if not isinstance(config, dict):
        raise InputError("should hold keys and values, as a config.json does", file=file)
    return _Reader(file, config).sizes()


class _Reader:
    """Reads values of config.json; errors name the key."""

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self._file = file
        self._config = config

    def sizes(self) -> ModelSizes:
        kind = self._config.get("model_type")
        if kind not in MODEL_TYPES:
            raise self._error(
                "model_type",
                f"{json.dumps(kind)} is not supported, only {', '.join(MODEL_TYPES)} (for other "
                "models, write an LLM file and give that)",
            )
        self._check_plain()
        hidden, num_heads = self._count("hidden_size"), self._count("num_attention_heads")
        kv_heads = self._count("num_key_value_heads", num_heads)
        head_dim = self._count("head_dim", hidden // num_heads)
        queries, keys = num_heads * head_dim, kv_heads * head_dim
        attention = 2 * hidden * (queries + keys)
        if self._flag("attention_bias"):
            attention += queries + 2 * keys + hidden
        norms = 2 * hidden + (2 * head_dim if kind != "llama" else 0)
        experts, used = 0, 0
        if kind == "qwen3_moe":
            experts, used = self._count("num_experts"), self._count("num_experts_per_tok")
            feed_forward = hidden * experts * (3 * self._count("moe_intermediate_size") + 1)
        else:
            inner = self._count("intermediate_size")
            feed_forward = 3 * hidden * inner
            if self._flag("mlp_bias"):
                feed_forward += 2 * inner + hidden
        table = self._count("vocab_size") * hidden
        return ModelSizes(
            num_layers=self._count("num_hidden_layers"),
            hidden_size=hidden,
            bytes_per_value=self._value_bytes(),
            layer_values=attention + norms + feed_forward,
            once_values=table * (1 if self._flag("tie_word_embeddings") else 2) + hidden,
            kv_values=2 * keys,
            num_experts=experts,
            experts_per_token=used,
        )

    def _check_plain(self) -> None:
        """Refuse what would change the sizes."""
        for key in ("quantization_config", "compression_config"):
            if self._config.get(key) is not None:
                raise self._error(key, "quantized weights are not supported; write an LLM file")
        for key, plain in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
            if self._config.get(key, plain) not in (plain, None):
                message = "layers of different kinds are not supported; write an LLM file"
                raise self._error(key, message)

    def _value_bytes(self) -> int:
        key = "torch_dtype" if "torch_dtype" in self._config else "dtype"
        dtype = self._config.get(key, "bfloat16")
        if dtype not in _VALUE_BYTES:
            known = ", ".join(_VALUE_BYTES)
            raise self._error(key, f"{json.dumps(dtype)} is not supported, only {known}")
        return _VALUE_BYTES[dtype]

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._error(key, "this key is missing; it should be a whole number above zero")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31:
            message = f"must be a whole number above zero, not {json.dumps(value)[:60]}"
            raise self._error(key, message)
        return value

    def _flag(self, key: str) -> bool:
        value = self._config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, f"must be true or false, not {json.dumps(value)[:60]}")
        return bool(value)

    def _error(self, key: str, message: str) -> InputError:
        return InputError(message, file=self._file, where=key)
