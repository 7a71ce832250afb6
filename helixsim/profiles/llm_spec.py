"""Model of LLM files."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from helixsim.profiles.machine import LLM
from helixsim.profiles.spec import Count, LayerCount, Name
from helixsim.yaml_files import Bytes, FileModel, located_error

KindNumbers = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(strict=False, max_length=1000)
]


class LayerKindSpec(FileModel):
    """Sizes of one kind of layers."""

    name: str = Field(default="", description="For readers.")
    layer_size: Bytes = Field(description="Size of the weights of one layer.")
    kv_size: Bytes = Field(description="Size of the keys and values of one token in one layer.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("layer_size", "kv_size"):
            if getattr(self, key) == 0:
                raise located_error(key, "must be above zero")
        return self


class LLMSpec(FileModel):
    """An LLM file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["llm"]
    name: Name
    source: str = Field(default="", description="Source of the figures.")
    num_layers: LayerCount
    hidden_size: Count | None = Field(
        default=None, description="Width of the hidden state, in values of bytes_per_value."
    )
    bytes_per_value: Annotated[int, Field(ge=1, le=8)] = 2
    activation_size: Bytes | None = Field(
        default=None,
        description="Size of one token's hidden state in messages, instead of hidden_size.",
    )
    token_size: Bytes = Field(default=2.0, description="Size of one token id in messages.")
    layer_size: Bytes | None = Field(
        default=None,
        description="Size of the weights of one layer; needed without `kinds`.",
    )
    kv_size: Bytes | None = Field(
        default=None,
        description="Size of the keys and values of one token in one layer; needed without "
        "`kinds`.",
    )
    kinds: Annotated[tuple[LayerKindSpec, ...], Field(strict=False)] = Field(
        default=(), description="Layers of several kinds, instead of layer_size and kv_size."
    )
    kind_of_layer: KindNumbers = Field(
        default=(), description="With `kinds`: for each layer, the number of its kind, from 0."
    )
    embedding_size: Bytes = Field(
        default=0.0,
        description="Size of the embedding, which the machine with the first layer holds.",
    )
    head_size: Bytes = Field(
        default=0.0,
        description="Size of the final norm and the head, which the machine with the "
        "last layer holds.",
    )
    tied: bool = Field(
        default=False,
        description="Whether the head is the embedding: a machine with the first and the last "
        "layer holds it once.",
    )
    once_size: Bytes = Field(
        default=0.0,
        description="Size of embedding and head together, half of it each; instead of "
        "embedding_size and head_size.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.hidden_size is None) == (self.activation_size is None):
            raise ValueError("give either hidden_size or activation_size")
        for key in ("activation_size", "token_size", "layer_size", "kv_size"):
            if getattr(self, key) == 0:
                raise located_error(key, "must be above zero")
        if self.once_size and (self.embedding_size or self.head_size or self.tied):
            raise located_error(
                "once_size", "give either once_size or embedding_size and head_size"
            )
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        for key in ("layer_size", "kv_size"):
            if (getattr(self, key) is None) != bool(self.kinds):
                problem = "give either kinds or layer_size with kv_size"
                message = problem if self.kinds else "this key is missing (or kinds instead)"
                raise located_error(key, message)
        if self.kinds and len(self.kind_of_layer) != self.num_layers:
            raise located_error(
                "kind_of_layer",
                f"has {len(self.kind_of_layer)} entries, but num_layers is {self.num_layers}",
            )
        for layer, kind in enumerate(self.kind_of_layer):
            if kind >= len(self.kinds):
                message = f"must be below {len(self.kinds)}, the number of kinds, not {kind}"
                raise located_error(f"kind_of_layer[{layer}]", message)

    def to_llm(self) -> LLM:
        """Turn the file into the value that helixsim works with."""
        activation_bytes = self.activation_size
        if self.hidden_size is not None:
            activation_bytes = float(self.hidden_size * self.bytes_per_value)
        assert activation_bytes is not None
        embedding_bytes = self.embedding_size or self.once_size / 2
        head_bytes = self.head_size or self.once_size / 2
        layers = tuple(self.kinds[kind] for kind in self.kind_of_layer)
        layer_bytes, kv_bytes = self.layer_size, self.kv_size
        if layers:
            layer_bytes = sum(layer.layer_size for layer in layers) / len(layers)
            kv_bytes = sum(layer.kv_size for layer in layers) / len(layers)
        assert layer_bytes is not None
        assert kv_bytes is not None
        return LLM(
            name=self.name,
            num_layers=self.num_layers,
            activation_bytes_per_token=activation_bytes,
            token_bytes=self.token_size,
            layer_bytes=layer_bytes,
            kv_bytes_per_token_layer=kv_bytes,
            embedding_bytes=embedding_bytes,
            head_bytes=head_bytes,
            shared_bytes=min(embedding_bytes, head_bytes) if self.tied else 0.0,
            bytes_of_layer=tuple(layer.layer_size for layer in layers),
            kv_bytes_of_layer=tuple(layer.kv_size for layer in layers),
        )
