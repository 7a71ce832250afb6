"""Number formats of an LLM: what its ``config.json`` says of weights, KV cache and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from helixsim.errors import InputError
from helixsim.llms.architecture import NUMBER_FORMATS, NumberFormat
from helixsim.llms.config_values import ConfigValues, shown
from helixsim.llms.kept_modules import KeptModules
from helixsim.yaml_files import did_you_mean

_ALIASES: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
}
_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormats:
    """Formats of an LLM.

    Attributes
    ----------
    weights, kv, activations
        As of an :class:`.Architecture`.
    attention, dense, shared, experts
        Formats of the projections of the attention, of feed-forward blocks without experts, of
        shared experts, and of experts; None for `weights`.
    """

    weights: NumberFormat
    kv: NumberFormat
    activations: NumberFormat
    attention: NumberFormat | None = None
    dense: NumberFormat | None = None
    shared: NumberFormat | None = None
    experts: NumberFormat | None = None


def number_format(name: str) -> NumberFormat:
    """A format by its name.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    found = NUMBER_FORMATS.get(_ALIASES.get(name, name))
    if found is None:
        message = f"no number format '{name}'; {did_you_mean(name, NUMBER_FORMATS)}"
        raise InputError(message)
    return found


def read_number_formats(
    config: ConfigValues,
    text: ConfigValues,
    num_layers: int,
    *,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
) -> NumberFormats:
    """Read the formats of an LLM.

    Parameters
    ----------
    config
        The whole ``config.json``.
    text
        The part of it that describes the LLM; the same, if there are no others.
    num_layers
        Number of layers.
    weights, kv, activations
        Names of formats instead of the file's. Weights of routers stay in the activations' format.
    """
    plain = _declared(text) or _declared(config) or NUMBER_FORMATS["bf16"]
    form = _chosen("activations", activations) or plain
    quantized = config.below("quantization_config") or text.below("quantization_config")
    found = NumberFormats(weights=plain, kv=form, activations=form)
    if quantized is not None:
        found = _quantized(quantized, form, num_layers)
    if (own := _chosen("weights", weights)) is not None:
        found = NumberFormats(weights=own, kv=found.kv, activations=form)
    return replace(found, kv=_chosen("kv", kv) or found.kv)


def _chosen(option: str, name: str | None) -> NumberFormat | None:
    if name is None:
        return None
    try:
        return number_format(name)
    except InputError as error:
        raise InputError(error.message, where=option) from error


def _declared(values: ConfigValues) -> NumberFormat | None:
    key = "torch_dtype" if values.get("torch_dtype") is not None else "dtype"
    name = values.get(key)
    if name is None:
        return None
    if name not in _DTYPES:
        raise values.error(key, f"{shown(name)} is not supported, only {', '.join(_DTYPES)}")
    return NUMBER_FORMATS[_ALIASES[str(name)]]


def _quantized(values: ConfigValues, activations: NumberFormat, num_layers: int) -> NumberFormats:
    """Formats of quantized weights."""
    weights = _quantized_weights(values)
    kv = activations
    scheme = values.get("kv_cache_scheme") or values.get("kv_cache_quant_algo")
    if scheme not in (None, "", {}):
        kv = NUMBER_FORMATS["fp8"]
    if weights.name == "mxfp4":  # of experts only; all other weights stay
        return NumberFormats(weights=activations, experts=weights, kv=kv, activations=activations)
    kept = KeptModules(values, num_layers)

    def form(module: str) -> NumberFormat | None:
        return activations if kept.has(module) else None

    return NumberFormats(
        weights=weights,
        attention=form("self_attn.o_proj"),
        dense=form("mlp.down_proj"),
        shared=form("mlp.shared_experts.down_proj"),
        kv=kv,
        activations=activations,
    )


def _quantized_weights(values: ConfigValues) -> NumberFormat:
    method = values.text("quant_method")
    if method is None and values.get("quant_algo") is not None:
        method = "modelopt"
    found: NumberFormat | None = None
    if method in ("fp8", "fbgemm_fp8"):
        found = NUMBER_FORMATS["fp8"]
    elif method == "mxfp4":
        found = NUMBER_FORMATS["mxfp4"]
    elif method in ("gptq", "awq", "auto-round"):
        key = "bits" if values.get("bits") is not None else "w_bit"
        found = _integers(values, values.count(key, 4), values.get("group_size"), key)
    elif method == "bitsandbytes":
        # Blocks of 64 values have a scale of four bytes.
        is_int8 = values.flag("load_in_8bit")
        found = NUMBER_FORMATS["int8"] if is_int8 else NumberFormat("int4", 0.5 + 4 / 64)
    elif method == "compressed-tensors":
        found = _compressed(values)
    elif method is not None and method.startswith("modelopt"):
        found = _model_optimizer(values)
    if found is not None:
        return found
    known = "fp8, mxfp4, gptq, awq, bitsandbytes, compressed-tensors, modelopt"
    raise values.error(
        "quant_method",
        f"{shown(method)} is not supported, only {known} (name the weights' format instead, such "
        "as weights: fp8)"
        if method is not None
        else f"this key is missing; it should be one of {known}",
    )


def _integers(values: ConfigValues, bits: int, group: object, key: str) -> NumberFormat:
    if bits == 8:
        return NUMBER_FORMATS["int8"]
    if bits != 4:
        raise values.error(key, f"must be 4 or 8, not {bits}")
    if isinstance(group, int) and not isinstance(group, bool) and group > 0:
        return NumberFormat("int4", 0.5 + 2 / group)
    return NumberFormat("int4", 0.5)  # a scale for each output


def _compressed(values: ConfigValues) -> NumberFormat:
    groups = values.below("config_groups")
    for name in () if groups is None else sorted(groups.values):
        assert groups is not None
        group = groups.below(name)
        weights = None if group is None else group.below("weights")
        if weights is None:
            continue
        bits, kind = weights.count("num_bits"), weights.text("type")
        if kind != "float":
            return _integers(weights, bits, weights.get("group_size"), "num_bits")
        if bits == 8:
            return NUMBER_FORMATS["fp8"]
        if bits == 4:
            return NUMBER_FORMATS["mxfp4" if weights.get("group_size") == 32 else "nvfp4"]
        raise weights.error("num_bits", f"must be 4 or 8, not {bits}")
    raise values.error("config_groups", "no group says how weights are stored (weights.num_bits)")


def _model_optimizer(values: ConfigValues) -> NumberFormat:
    algorithm = values.text("quant_algo")
    names = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4", "INT4_AWQ": "int4"}
    if algorithm not in names:
        message = f"{shown(algorithm)} is not supported, only {', '.join(names)}"
        raise values.error("quant_algo", message)
    return NUMBER_FORMATS[names[algorithm]]
