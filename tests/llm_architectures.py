"""Architectures of LLMs for tests, as their ``config.json`` has them."""

from __future__ import annotations

from helixsim.llms.architecture import (
    NUMBER_FORMATS,
    Architecture,
    Attention,
    Experts,
    LayerKind,
    Matrix,
)

BF16 = NUMBER_FORMATS["bf16"]


def feed_forward(hidden: int, width: int, form=None) -> tuple[Matrix, ...]:
    return (
        Matrix("gate_up", hidden, 2 * width, "outputs", form),
        Matrix("down", width, hidden, "inputs", form),
    )


def grouped(hidden: int, heads: int, kv_heads: int, head_dim: int) -> tuple[Matrix, ...]:
    return (
        Matrix("qkv", hidden, (heads + 2 * kv_heads) * head_dim),
        Matrix("o", heads * head_dim, hidden, "inputs"),
    )


def attention(heads: int, kv_heads: int, head_dim: int, window: int | None = None) -> Attention:
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        window=window,
    )


def dense_llm(name, layers, hidden, heads, kv_heads, head_dim, width, vocabulary, **formats):
    normed, (window,) = formats.pop("normed", False), formats.pop("windows", (None,))
    kind = LayerKind(
        name="dense",
        attention=attention(heads, kv_heads, head_dim, window),
        matrices=grouped(hidden, heads, kv_heads, head_dim) + feed_forward(hidden, width),
        other_values=2 * hidden + (2 * head_dim if normed else 0),
    )
    return llm(name, hidden, vocabulary, (kind,), (0,) * layers, **formats)


def expert_llm(name, layers, hidden, heads, kv_heads, head_dim, experts, width, vocabulary, **keys):
    form, windows = keys.pop("form", None), keys.pop("windows", (None,))
    norms = 2 * hidden + (2 * head_dim if keys.pop("normed", False) else 0)
    count, used = experts
    kinds = tuple(
        LayerKind(
            name="experts",
            attention=attention(heads, kv_heads, head_dim, window),
            matrices=(
                *grouped(hidden, heads, kv_heads, head_dim),
                Matrix("router", hidden, count, "none"),
            ),
            experts=Experts(count, used, feed_forward(hidden, width, form)),
            other_values=norms,
        )
        for window in windows
    )
    of_layer = tuple(layer % len(kinds) for layer in range(layers))
    return llm(name, hidden, vocabulary, kinds, of_layer, **keys)


def llm(name, hidden, vocabulary, kinds, kind_of_layer, weights="bf16", kv="bf16"):
    return Architecture(
        name=name,
        hidden_size=hidden,
        vocab_size=vocabulary,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tied_embedding=False,
        weights=NUMBER_FORMATS[weights],
        kv=NUMBER_FORMATS[kv],
        activations=BF16,
    )


def llama_8b(**formats):
    return dense_llm("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, **formats)


def llama_70b(**formats):
    return dense_llm("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256, **formats)


def qwen3_32b(**formats):
    return dense_llm("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, normed=True, **formats)


def qwen3_30b_a3b(**keys):
    sizes = (48, 2048, 32, 4, 128, (128, 8), 768, 151936)
    return expert_llm("qwen3-30b-a3b", *sizes, normed=True, **keys)


def mixtral_8x7b(**keys):
    return expert_llm("mixtral-8x7b", 32, 4096, 32, 8, 128, (8, 2), 14336, 32000, **keys)


def gpt_oss_120b():
    return expert_llm(
        *("gpt-oss-120b", 36, 2880, 64, 8, 64, (128, 4), 2880, 201088),
        form=NUMBER_FORMATS["mxfp4"],
        windows=(128, None),
    )


def deepseek_v3():
    hidden = 7168
    latent = Attention(num_heads=128, num_kv_heads=128, key_dim=192, value_dim=128, latent_dim=576)
    projections = (
        Matrix("q_a", hidden, 1536, "none"),
        Matrix("q_b", 1536, 128 * 192),
        Matrix("kv_a", hidden, 576, "none"),
        Matrix("kv_b", 512, 128 * 256),
        Matrix("o", 128 * 128, hidden, "inputs"),
    )
    dense = LayerKind(
        name="dense", attention=latent, matrices=projections + feed_forward(hidden, 18432)
    )
    experts = LayerKind(
        name="experts",
        attention=latent,
        matrices=(
            *projections,
            *feed_forward(hidden, 2048),
            Matrix("router", hidden, 256, "none", BF16),
        ),
        experts=Experts(256, 8, feed_forward(hidden, 2048)),
    )
    of_layer = (0,) * 3 + (1,) * 58
    return llm("deepseek-v3", hidden, 129280, (dense, experts), of_layer, "fp8", "fp8")


def deepseek_v3_without_dense_layers():
    """All layers as the library has them: it knows none of the dense ones."""
    full = deepseek_v3()
    return llm("deepseek-v3", 7168, 129280, full.kinds[1:], (0,) * 61, "fp8", "fp8")
