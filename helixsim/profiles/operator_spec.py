"""Models of the operator tables in machine files."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from helixsim.profiles.curve_spec import (
    OperatorCurveSpec,
    Points,
    Times,
    check_located,
    seconds_of,
)
from helixsim.profiles.operators import (
    AllReduce,
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorTables,
)
from helixsim.yaml_files import BytesPerSecond, FileModel, Seconds, located_error


class AttentionSpec(FileModel):
    """Measured attention of one layer: a chunk of a prefill beside a batch of decodes."""

    chunk: Points = Field(description="New tokens of the chunk, increasing from 0.")
    chunk_context: Points = Field(
        description="Tokens in the KV cache before the chunk, increasing."
    )
    decodes: Points = Field(description="Number of decodes, increasing from 0.")
    decode_context: Points = Field(
        description="Mean context of the decodes, with the new token, increasing."
    )
    ms: Times = Field(
        description="Milliseconds at all combinations: the times for each `decode_context` of the "
        "first number of decodes, then of the second, and so on; `chunk` varies slowest."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_located(self.to_table)
        return self

    def to_table(self) -> AttentionTable:
        """Turn the lists into a table in seconds."""
        return AttentionTable(
            self.chunk, self.chunk_context, self.decodes, self.decode_context, seconds_of(self.ms)
        )


class AllReduceSpec(FileModel):
    """Costs of one all-reduce among the GPUs of the machine."""

    latency: Seconds = Field(description="Time of an all-reduce with hardly any data.")
    bandwidth: BytesPerSecond = Field(
        description="Rate at which each GPU exchanges data; each of N GPUs sends 2 (N - 1) / N "
        "times the hidden states."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bandwidth == 0:
            raise located_error("bandwidth", "must be above zero")
        return self

    def to_all_reduce(self) -> AllReduce:
        """Turn the keys into a value."""
        return AllReduce(self.latency, self.bandwidth)


class ExpertsSpec(FileModel):
    """Measured experts of one layer, by tokens and distinct experts in use."""

    num_experts: Annotated[int, Field(ge=1, le=2**20)] = Field(description="Experts of a layer.")
    experts_per_token: Annotated[int, Field(ge=1, le=2**20)] = Field(
        description="Experts that each token uses. The number of distinct experts in use is the "
        "expected one: E (1 - (1 - k / E)^tokens)."
    )
    tokens: Points = Field(description="Tokens in one batch, increasing.")
    experts: Points = Field(description="Numbers of distinct experts, increasing.")
    ms: Times = Field(description="Milliseconds at all combinations; `experts` varies fastest.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_located(self.to_table)
        return self

    def to_table(self) -> ExpertTable:
        """Turn the keys into a table in seconds."""
        return ExpertTable(
            self.num_experts, self.experts_per_token, self.tokens, self.experts, seconds_of(self.ms)
        )


class LayersSpec(FileModel):
    """Measured times of layers of one kind."""

    dense: OperatorCurveSpec = Field(
        description="Operators of one layer that depend on the number of tokens only, together: "
        "projections, norms, feed-forward block."
    )
    attention: AttentionSpec = Field(description="Attention of one layer.")
    experts: ExpertsSpec | None = Field(
        default=None, description="Experts of one layer, for a mixture of experts."
    )

    def to_tables(self) -> LayerTables:
        """Turn the block into tables in seconds."""
        return LayerTables(
            self.dense.to_curve(),
            self.attention.to_table(),
            None if self.experts is None else self.experts.to_table(),
        )


LayerKinds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(strict=False, max_length=10_000)
]


class OperatorsSpec(FileModel):
    """Measured times of a layer's operators, instead of `prefill` and `decode`."""

    dense: OperatorCurveSpec | None = Field(
        default=None,
        description="Operators of one layer that depend on the number of tokens only, together: "
        "projections, norms, feed-forward block. Needed without `kinds`.",
    )
    attention: AttentionSpec | None = Field(
        default=None, description="Attention of one layer. Needed without `kinds`."
    )
    experts: ExpertsSpec | None = Field(
        default=None, description="Experts of one layer, for a mixture of experts."
    )
    kinds: Annotated[tuple[LayersSpec, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Instead of `dense`, `attention` and `experts`, for an LLM with layers of "
        "different kinds: one entry for each kind.",
    )
    kind_of_layer: LayerKinds = Field(
        default=(),
        description="With `kinds`: for each layer of the LLM, the number of its kind, from 0.",
    )
    embedding: OperatorCurveSpec = Field(description="By tokens; only beside the first layer.")
    final_norm: OperatorCurveSpec = Field(description="By tokens; only beside the last layer.")
    head: OperatorCurveSpec = Field(
        description="Head and sampler by sequences; only beside the last layer."
    )
    decode_skew: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Decodes with uneven contexts take t(mean) + decode_skew x (t(longest) - "
        "t(mean)), for attention.",
    )
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1,
        description="GPUs of the machine that share each layer; the times are of one of them.",
    )
    all_reduce: AllReduceSpec | None = Field(
        default=None,
        description="Costs of each of the two all-reduces of a layer; needed with tensor_parallel "
        "above 1.",
    )
    step_gap: Annotated[Seconds, Field(ge=0, le=10)] = Field(
        default=0.0,
        description="Time between two steps in which the GPU waits for its inputs.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tensor_parallel > 1 and self.all_reduce is None:
            message = f"give it, since tensor_parallel is {self.tensor_parallel}"
            raise located_error("all_reduce", message)
        self._check_kinds()
        return self

    def _check_kinds(self) -> None:
        """Layers are given in exactly one of two forms."""
        for name in ("dense", "attention", "experts"):
            given = getattr(self, name) is not None
            if given and self.kinds is not None:
                raise located_error(name, "give either kinds or dense with attention")
            if not given and self.kinds is None and name != "experts":
                raise located_error(name, "this key is missing (or kinds instead)")
        check_located(self.to_tables)

    def _kinds(self) -> tuple[LayerTables, ...]:
        if self.kinds is not None:
            return tuple(kind.to_tables() for kind in self.kinds)
        assert self.dense is not None
        assert self.attention is not None
        return (
            LayersSpec(
                dense=self.dense, attention=self.attention, experts=self.experts
            ).to_tables(),
        )

    def to_tables(self) -> OperatorTables:
        """Turn the block into tables in seconds."""
        return OperatorTables(
            kinds=self._kinds(),
            kind_of_layer=self.kind_of_layer,
            embedding=self.embedding.to_curve(),
            final_norm=self.final_norm.to_curve(),
            head=self.head.to_curve(),
            decode_skew=self.decode_skew,
            tensor_parallel=self.tensor_parallel,
            all_reduce=None if self.all_reduce is None else self.all_reduce.to_all_reduce(),
            step_gap_s=self.step_gap,
        )
