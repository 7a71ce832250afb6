"""The layers of an LLM from its ``config.json``: which kind each is, and what a kind is made of."""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.llms.architecture import Attention, Experts, LayerKind, Matrix
from helixsim.llms.config_values import ConfigValues, shown
from helixsim.llms.families import Bias, ExpertKeys, Family
from helixsim.llms.number_formats import NumberFormats

MAX_LAYERS = 1000

_LAYER_TYPES = {"full_attention": False, "sliding_attention": True, "chunked_attention": True}
"""Entry of ``layer_types`` -> whether the layer has a window. A chunk counts as a window."""


def layer_count(values: ConfigValues) -> int:
    """The number of layers."""
    count = values.count("num_hidden_layers")
    if count > MAX_LAYERS:
        raise values.error("num_hidden_layers", f"must be at most {MAX_LAYERS:,}")
    return count


@dataclass(frozen=True, slots=True)
class LayerReader:
    """Reads the layers of an LLM.

    Attributes
    ----------
    values
        The part of ``config.json`` that describes the LLM.
    family
        What its ``model_type`` means.
    formats
        Number formats.
    """

    values: ConfigValues
    family: Family
    formats: NumberFormats

    def layers(self) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
        """The kinds of layers, in order of their first layer, and the number of each layer's kind.

        Raises
        ------
        InputError
            Where a key is missing or wrong.
        """
        count = layer_count(self.values)
        looks = list(zip(self._windows(count), self._with_experts(count), strict=True))
        order = list(dict.fromkeys(looks))
        several = len({window for window, _ in order}) > 1
        kinds = tuple(self._kind(*look, name_window=several) for look in order)
        return kinds, tuple(order.index(look) for look in looks)

    # -- which kind

    def _windows(self, count: int) -> list[int | None]:
        """The window of each layer."""
        types = self.values.items("layer_types")
        if types is not None:
            sliding = self._typed(types, count)
        elif self.family.window == "all":
            sliding = [self.values.get(self.family.window_key) is not None] * count
        elif self.family.window == "late":
            first = self.values.number("max_window_layers", count)
            uses = self.values.flag("use_sliding_window")
            sliding = [uses and layer >= first for layer in range(count)]
        elif self.family.window == "pattern":
            every = self.values.count("sliding_window_pattern")
            sliding = [(layer + 1) % every != 0 for layer in range(count)]
        else:
            sliding = [False] * count
        if not any(sliding):
            return [None] * count
        window = self.values.count(self.family.window_key)
        return [window if slides else None for slides in sliding]

    def _typed(self, types: list[object], count: int) -> list[bool]:
        if len(types) != count:
            message = f"has {len(types)} entries, but num_hidden_layers is {count}"
            raise self.values.error("layer_types", message)
        for layer, kind in enumerate(types):
            if kind not in list(_LAYER_TYPES):
                known = ", ".join(_LAYER_TYPES)
                message = f"{shown(kind)} is not supported, only {known}"
                raise self.values.error(f"layer_types[{layer}]", message)
        return [_LAYER_TYPES[str(kind)] for kind in types]

    def _with_experts(self, count: int) -> list[bool]:
        """Whether each layer has experts."""
        keys, values = self.family.experts, self.values
        if keys is None or not values.number(keys.count):
            return [False] * count
        if keys.rule == "after dense":
            first, every = values.number("first_k_dense_replace"), values.count("moe_layer_freq", 1)
            return [layer >= first and layer % every == 0 for layer in range(count)]
        if keys.rule == "step":
            dense = values.items("mlp_only_layers") or []
            every = values.count(keys.step, 1)
            return [layer not in dense and (layer + 1) % every == 0 for layer in range(count)]
        return [True] * count

    # -- what a kind is made of

    def _kind(self, window: int | None, has_experts: bool, *, name_window: bool) -> LayerKind:
        hidden = self.values.count("hidden_size")
        attention, matrices, other = self._attention(window)
        experts: Experts | None = None
        if has_experts:
            assert self.family.experts is not None
            experts, block, biases = self._experts(self.family.experts)
        else:
            block, biases = self._feed_forward(self.values.count(self.family.dense_width))
        norms = self.family.norms * hidden * (2 if self.family.norm_bias else 1)
        name = "experts" if has_experts else "dense"
        if name_window:
            name += ", all tokens" if window is None else f", window of {window:,}"
        return LayerKind(
            name=name,
            attention=attention,
            matrices=(*matrices, *block),
            experts=experts,
            other_values=other + biases + norms,
        )

    def _attention(self, window: int | None) -> tuple[Attention, tuple[Matrix, ...], int]:
        """Attention, its projections, and its weights that are in no matrix."""
        if self.family.latent:
            return self._latent_attention(window)
        values, hidden = self.values, self.values.count("hidden_size")
        heads = values.count("num_attention_heads")
        kv_heads = values.count("num_key_value_heads", heads)
        if heads % kv_heads:
            raise values.error("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
        if values.get("head_dim") is None and hidden % heads:
            message = f"this key is missing, and {heads} heads do not divide {hidden}"
            raise values.error("head_dim", message)
        head_dim = values.count("head_dim", hidden // heads)
        queries, keys = heads * head_dim, kv_heads * head_dim
        other = heads if self.family.sinks else 0
        if self._has(self.family.qkv_bias):
            other += queries + 2 * keys
        if self._has(self.family.output_bias):
            other += hidden
        norm = self.family.qk_norm
        if norm == "width":
            other += queries + keys
        elif norm == "head" or (norm != "none" and values.flag(norm)):
            other += 2 * head_dim
        attention = Attention(
            num_heads=heads,
            num_kv_heads=kv_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            window=window,
        )
        form = self.formats.attention
        qkv = Matrix("qkv", hidden, queries + 2 * keys, "outputs", form)
        return attention, (qkv, Matrix("output", queries, hidden, "inputs", form)), other

    def _latent_attention(self, window: int | None) -> tuple[Attention, tuple[Matrix, ...], int]:
        """As DeepSeek-V2 has it: keys and values of all heads follow from one latent."""
        values, hidden, form = self.values, self.values.count("hidden_size"), self.formats.attention
        heads = values.count("num_attention_heads")
        rope, value = values.count("qk_rope_head_dim"), values.count("v_head_dim")
        plain, latent = values.count("qk_nope_head_dim"), values.count("kv_lora_rank")
        query_latent, key = values.number("q_lora_rank"), plain + rope
        other = latent + query_latent  # norms
        if self._has(self.family.output_bias):
            other += query_latent + latent + rope + hidden
        queries: tuple[Matrix, ...]
        if query_latent:
            queries = (
                Matrix("query down", hidden, query_latent, "none", form),
                Matrix("query up", query_latent, heads * key, "outputs", form),
            )
        else:
            queries = (Matrix("query", hidden, heads * key, "outputs", form),)
        matrices = (
            *queries,
            Matrix("latent down", hidden, latent + rope, "none", form),
            Matrix("latent up", latent, heads * (plain + value), "outputs", form),
            Matrix("output", heads * value, hidden, "inputs", form),
        )
        attention = Attention(
            num_heads=heads,
            num_kv_heads=heads,
            key_dim=key,
            value_dim=value,
            latent_dim=latent + rope,
            window=window,
        )
        return attention, matrices, other

    def _feed_forward(self, width: int) -> tuple[tuple[Matrix, ...], int]:
        hidden = self.values.count("hidden_size")
        inner = (2 if self.family.gated else 1) * width
        name = "gate and up" if self.family.gated else "up"
        bias = inner + hidden if self._has(self.family.mlp_bias) else 0
        up = Matrix(name, hidden, inner, "outputs", self.formats.dense)
        return (up, Matrix("down", width, hidden, "inputs", self.formats.dense)), bias

    def _experts(self, keys: ExpertKeys) -> tuple[Experts, tuple[Matrix, ...], int]:
        """Experts, the router with the shared experts, and its weights that are in no matrix."""
        values, hidden, form = self.values, self.values.count("hidden_size"), self.formats.experts
        count, used, width = (values.count(key) for key in (keys.count, keys.used, keys.width))
        if used > count:
            raise values.error(keys.used, f"must be at most {keys.count} ({count}), not {used}")
        experts = Experts(
            count,
            used,
            (
                Matrix("gate and up", hidden, 2 * width, "outputs", form),
                Matrix("down", width, hidden, "inputs", form),
            ),
            2 * width + hidden if keys.bias else 0,
        )
        plain = self.formats.activations
        block = [Matrix("router", hidden, count, "none", plain)]
        shared = 0
        if keys.shared_count is not None:
            shared = width * values.number(keys.shared_count)
        elif keys.shared_width is not None:
            shared = values.number(keys.shared_width)
        if shared:
            block += [
                Matrix("shared gate and up", hidden, 2 * shared, "outputs", self.formats.shared),
                Matrix("shared down", shared, hidden, "inputs", self.formats.shared),
            ]
            if keys.shared_gate:
                block.append(Matrix("shared expert's gate", hidden, 1, "none", plain))
        return experts, tuple(block), count if keys.router_bias else 0

    def _has(self, bias: Bias) -> bool:
        return self.values.flag(bias) if isinstance(bias, str) else bias
