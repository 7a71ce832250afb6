"""Tensor parallelism: how the weights of a layer are divided among the devices of a node.

Each rank has one device. It holds a part of the attention heads, with their KV heads, and of the
columns of the MLP. The outputs of attention and MLP are summed over all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from helixreal.engines.model_config import LlamaConfig
from helixsim.errors import InputError

_ROWS, _COLUMNS = 0, 1
_DIVIDED: Mapping[str, int] = {
    "self_attn.q_proj": _ROWS,
    "self_attn.k_proj": _ROWS,
    "self_attn.v_proj": _ROWS,
    "self_attn.o_proj": _COLUMNS,
    "mlp.gate_proj": _ROWS,
    "mlp.up_proj": _ROWS,
    "mlp.down_proj": _COLUMNS,
}
"""Linear layer -> the dimension of its weight that is divided: of its outputs or of its inputs."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` equal parts of a tensor, along a dimension.

    Attributes
    ----------
    dimension, index, count
        The dimension; the number of the part; the number of parts.
    """

    dimension: int
    index: int
    count: int

    def bounds(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Start and end of the part along its dimension, of a tensor of this shape."""
        size = shape[self.dimension] // self.count
        return self.index * size, (self.index + 1) * size


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of each layer.

    Attributes
    ----------
    rank, num_ranks
        Number of the rank, and number of ranks.
    """

    rank: int = 0
    num_ranks: int = 1

    def config(self, config: LlamaConfig) -> LlamaConfig:
        """The config of a model whose layers are as large as this rank's parts."""
        return replace(
            config,
            num_heads=config.num_heads // self.num_ranks,
            num_kv_heads=config.num_kv_heads // self.num_ranks,
            intermediate_size=config.intermediate_size // self.num_ranks,
        )

    def part(self, linear: str, kind: str) -> Part | None:
        """The part of a linear layer's ``weight`` or ``bias``; None for all of it."""
        dimension = _DIVIDED[linear]
        if self.num_ranks == 1 or (kind == "bias" and dimension == _COLUMNS):
            return None
        return Part(dimension, self.rank, self.num_ranks)

    def has_bias(self, linear: str) -> bool:
        """Whether this rank adds the layer's bias: of summed outputs, one rank does."""
        return _DIVIDED[linear] == _ROWS or self.rank == 0


def check_ranks(config: LlamaConfig, num_ranks: int, file: Path) -> None:
    """Check that the layers of a model can be divided.

    Raises
    ------
    InputError
        If they cannot; `file` is its config.json.
    """
    sizes = {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
    }
    for key, size in sizes.items():
        if size % num_ranks:
            common = gcd(*sizes.values())
            counts = [str(n) for n in range(1, common + 1) if common % n == 0]
            raise InputError(
                f"{size} cannot be divided among {num_ranks} devices; use {' or '.join(counts)}",
                file=file,
                where=key,
            )
