"""LLMs that others measured, by their config.json, written out by hand."""

from helixsim.llms.architecture import (
    NUMBER_FORMATS,
    Architecture,
    Attention,
    Experts,
    LayerKind,
    Matrix,
    NumberFormat,
)

BF16 = NUMBER_FORMATS["bf16"]


def architecture(
    name: str,
    layers: int,
    hidden: int,
    heads: tuple[int, int, int],
    ffn: int,
    vocab: int,
    *,
    experts: tuple[int, int] | None = None,
    weights: NumberFormat = BF16,
    expert_weights: NumberFormat | None = None,
    windows: tuple[int | None, ...] = (None,),
    tied: bool = False,
) -> Architecture:
    """An LLM of like layers.

    Parameters
    ----------
    heads
        Query heads, KV heads, and values of a head.
    ffn
        Inner size of the feed-forward block, or of an expert.
    experts
        Number of experts, and how many a token uses.
    windows
        Windows of the attention, in turn.
    """
    num_heads, num_kv, dim = heads
    block = (
        Matrix("gate_up", hidden, 2 * ffn, number_format=expert_weights),
        Matrix("down", ffn, hidden, "inputs", expert_weights),
    )
    matrices: tuple[Matrix, ...] = (
        Matrix("qkv", hidden, (num_heads + 2 * num_kv) * dim),
        Matrix("o", num_heads * dim, hidden, "inputs"),
    )
    routed = None
    if experts is None:
        matrices += block
    else:
        matrices += (Matrix("router", hidden, experts[0], "none"),)
        routed = Experts(experts[0], experts[1], block)
    kinds = tuple(
        LayerKind(
            name=f"window {window}" if window else "full",
            attention=Attention(
                num_heads=num_heads,
                num_kv_heads=num_kv,
                key_dim=dim,
                value_dim=dim,
                window=window,
            ),
            matrices=matrices,
            experts=routed,
            other_values=2 * hidden,
        )
        for window in windows
    )
    return Architecture(
        name=name,
        hidden_size=hidden,
        vocab_size=vocab,
        kinds=kinds,
        kind_of_layer=tuple(layer % len(kinds) for layer in range(layers)),
        tied_embedding=tied,
        weights=weights,
        kv=BF16,
        activations=BF16,
        other_values=hidden,
    )


_SIZES = {
    "llama1-30b": (60, 6656, (52, 52, 128), 17920, 32000),
    "llama2-70b": (80, 8192, (64, 8, 128), 28672, 32000),
    "llama-3.1-8b": (32, 4096, (32, 8, 128), 14336, 128256),
    "llama-3.1-70b": (80, 8192, (64, 8, 128), 28672, 128256),
    "qwen3-32b": (64, 5120, (64, 8, 128), 25600, 151936),
    "mixtral-8x7b": (32, 4096, (32, 8, 128), 14336, 32000, (8, 2)),
    "qwen3-30b-a3b": (48, 2048, (32, 4, 128), 768, 151936, (128, 8)),
    "gpt-oss-120b": (36, 2880, (64, 8, 64), 2880, 201088, (128, 4)),
}


def deepseek_v3() -> Architecture:
    """DeepSeek-V3: multi-head latent attention, three dense layers, a shared expert."""
    hidden, heads, inner = 7168, 128, 2048
    projections = (
        Matrix("q_a", hidden, 1536, "none"),
        Matrix("q_b", 1536, heads * 192),
        Matrix("kv_a", hidden, 576, "none"),
        Matrix("kv_b", 512, heads * 256),
        Matrix("o", heads * 128, hidden, "inputs"),
    )
    attention = Attention(
        num_heads=heads, num_kv_heads=heads, key_dim=192, value_dim=128, latent_dim=576
    )

    def block(size: int) -> tuple[Matrix, ...]:
        up = Matrix("gate_up", hidden, 2 * size)
        return up, Matrix("down", size, hidden, "inputs")

    dense = LayerKind(name="dense", attention=attention, matrices=(*projections, *block(18_432)))
    router = Matrix("router", hidden, 256, "none", BF16)
    routed = LayerKind(
        name="experts",
        attention=attention,
        matrices=(*projections, router, *block(inner)),
        experts=Experts(256, 8, block(inner)),
    )
    return Architecture(
        name="deepseek-v3",
        hidden_size=hidden,
        vocab_size=129_280,
        kinds=(dense, routed),
        kind_of_layer=(0,) * 3 + (1,) * 58,
        tied_embedding=False,
        weights=NUMBER_FORMATS["fp8"],
        kv=BF16,
        activations=BF16,
    )


def measured_llm(name: str, weights: str = "bf16") -> Architecture:
    """An LLM that others measured, with weights of this format."""
    if name == "deepseek-v3":
        return deepseek_v3()
    layers, hidden, heads, ffn, vocab, *experts = _SIZES[name]
    gpt_oss = name.startswith("gpt-oss")
    return architecture(
        name,
        layers,
        hidden,
        heads,
        ffn,
        vocab,
        experts=experts[0] if experts else None,
        weights=BF16 if gpt_oss else NUMBER_FORMATS[weights],
        expert_weights=NUMBER_FORMATS[weights] if gpt_oss else None,
        windows=(128, None) if gpt_oss else (None,),
    )
