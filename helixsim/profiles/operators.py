"""Measured times of a layer's operators, from which the time of any pass follows.

With all new tokens of a pass as *tokens* and its requests as *sequences*, a node takes

.. code-block:: text

    step_gap
    + layers x (dense(tokens) + attention + experts(tokens) + 2 x all_reduce(tokens))
    + embedding(tokens)                         if it holds the first layer
    + final_norm(tokens) + head(sequences)      if it holds the last layer

Layers of different kinds (dense layers before experts, sliding windows) have times of their own.
:class:`helixsim.physics.operators.OperatorStepTimer` adds them up for the steps of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.errors import ScenarioError
from helixsim.profiles.grids import check_axis, check_cells, check_time, interpolated

ALL_REDUCES_PER_LAYER = 2
"""One after the attention, one after the feed-forward block."""


@dataclass(frozen=True, slots=True)
class OperatorCurve:
    """Seconds against tokens (or sequences), piecewise linear between measured points.

    Below the first point, its time holds. Beyond the last point, the line through the point at
    half its tokens and the last point is extrapolated: matrix products run in tiles, so their
    times rise in stairs, and neighbouring points are mostly on one stair. If this line falls
    (measurements scatter), the last time holds.

    Attributes
    ----------
    tokens
        The measured points, at least 0, rising.
    seconds
        Time at each of them, above zero.

    Raises
    ------
    ScenarioError
        If the points are invalid; `where` is the first invalid point.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        check_axis("tokens", self.tokens)
        if len(self.tokens) != len(self.seconds):
            raise ScenarioError(
                f"{len(self.tokens)} numbers of tokens but {len(self.seconds)} times; give one "
                "time for each number of tokens"
            )
        for index, value in enumerate(self.seconds):
            check_time(index, value)

    def __call__(self, num_tokens: float) -> float:
        """Seconds for this number of tokens."""
        first, last = self.tokens[0], self.tokens[-1]
        if num_tokens > last > first:
            half = max(last / 2, first)
            rise = (self.seconds[-1] - self(half)) / (last - half)
            return self.seconds[-1] + max(rise, 0.0) * (num_tokens - last)
        return interpolated((self.tokens,), self.seconds, (num_tokens,))


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """Attention of one layer for one chunk of a prefill and a batch of decodes, run together.

    Times are multilinear between the measured points. Below the first point of an axis, its time
    holds; beyond the last point, the line through the last two is extrapolated, unless it falls.

    Attributes
    ----------
    chunk, chunk_context
        New tokens of the chunk, and tokens that the KV cache holds before it. `chunk` rises
        from 0, for batches of decodes alone.
    decodes, decode_context
        Number of decodes, and their mean context, with the new token. `decodes` rises from 0, for
        a chunk alone.
    seconds
        Times at all combinations, row-major: `decode_context` varies fastest, `chunk` slowest.
        Above zero, but for the cells of no chunk and no decodes.

    Raises
    ------
    ScenarioError
        If the table is invalid; `where` is the first invalid value.
    """

    chunk: tuple[int, ...]
    chunk_context: tuple[int, ...]
    decodes: tuple[int, ...]
    decode_context: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("chunk", "chunk_context", "decodes", "decode_context"):
            check_axis(name, getattr(self, name))
        for name in ("chunk", "decodes"):
            if getattr(self, name)[0] != 0:
                raise ScenarioError(f"must be 0, not {getattr(self, name)[0]}", where=f"{name}[0]")
        check_cells(self.axes, self.seconds)
        row = len(self.decodes) * len(self.decode_context)
        first_chunk = row * len(self.chunk_context)
        for index, value in enumerate(self.seconds):
            idle = index < first_chunk and index % row < len(self.decode_context)
            if not (idle and value == 0):
                check_time(index, value)

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The points of each axis, in the order of the times."""
        return self.chunk, self.chunk_context, self.decodes, self.decode_context

    def __call__(
        self, chunk: float, chunk_context: float, decodes: float, decode_context: float
    ) -> float:
        """Seconds of a chunk beside decodes with this mean context."""
        return interpolated(
            self.axes, self.seconds, (chunk, chunk_context, decodes, decode_context)
        )


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """The experts of one layer, by tokens and by the distinct experts that these tokens use.

    Attributes
    ----------
    num_experts, experts_per_token
        Experts of a layer, and how many of them each token uses.
    tokens, experts
        Numbers of tokens and of distinct experts that were measured.
    seconds
        Times at all combinations, row-major: `experts` varies fastest.

    Raises
    ------
    ScenarioError
        If the table is invalid; `where` is the first invalid value.
    """

    num_experts: int
    experts_per_token: int
    tokens: tuple[int, ...]
    experts: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ScenarioError(
                f"must be 1 to num_experts ({self.num_experts}), not {self.experts_per_token}",
                where="experts_per_token",
            )
        check_axis("tokens", self.tokens)
        check_axis("experts", self.experts)
        check_cells((self.tokens, self.experts), self.seconds)
        for index, value in enumerate(self.seconds):
            check_time(index, value)

    def distinct_experts(self, num_tokens: int) -> float:
        """Expected number of distinct experts, if each token picks its own at random.

        An expert stays unused by a token with probability 1 - k / E.
        """
        unused = (1 - self.experts_per_token / self.num_experts) ** num_tokens
        return self.num_experts * (1 - unused)

    def __call__(self, num_tokens: int) -> float:
        """Seconds of a layer's experts for this number of tokens."""
        point = (num_tokens, self.distinct_experts(num_tokens))
        return interpolated((self.tokens, self.experts), self.seconds, point)


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Costs of one all-reduce among the GPUs of a machine.

    Attributes
    ----------
    latency_s
        Time of one with hardly any data.
    bytes_per_s
        Rate at which each GPU exchanges data.
    """

    latency_s: float
    bytes_per_s: float

    def __call__(self, num_bytes: float, num_gpus: int) -> float:
        """Seconds; by a ring, each GPU sends 2 (N - 1) / N times the data."""
        return self.latency_s + 2 * (num_gpus - 1) / num_gpus * num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class LayerTables:
    """Times of one kind of layers.

    Attributes
    ----------
    dense
        All operators of one layer that depend on the number of tokens only, together.
    attention
        Attention of one layer.
    experts
        Experts of one layer, if it has them.
    """

    dense: OperatorCurve
    attention: AttentionTable
    experts: ExpertTable | None = None

    def __call__(self, num_tokens: int) -> float:
        """Seconds of one layer for this number of tokens, without attention and all-reduces."""
        seconds = self.dense(num_tokens)
        return seconds if self.experts is None else seconds + self.experts(num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTables:
    """Times of all operators of an LLM on a machine.

    Attributes
    ----------
    kinds
        Times of each kind of layers.
    kind_of_layer
        For each layer of the LLM, the number of its kind; empty if there is only one kind.
    embedding
        By tokens, once on the node with the first layer.
    final_norm, head
        By tokens, and by sequences (language model head and sampler), once on the node with
        the last layer.
    decode_skew
        A batch of decodes with uneven contexts takes
        t(mean context) + decode_skew x (t(longest context) - t(mean context)), for attention.
    tensor_parallel
        GPUs that share each layer.
    all_reduce
        What they exchange their results with; needed if they are several.
    step_gap_s
        Time between two steps in which the GPU waits for its inputs; operators do not have it.

    Raises
    ------
    ScenarioError
        If the values are invalid; `where` is the first invalid one.
    """

    kinds: tuple[LayerTables, ...]
    embedding: OperatorCurve
    final_norm: OperatorCurve
    head: OperatorCurve
    kind_of_layer: tuple[int, ...] = ()
    decode_skew: float = 0.0
    tensor_parallel: int = 1
    all_reduce: AllReduce | None = None
    step_gap_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ScenarioError("give one kind of layers at least", where="kinds")
        if len(self.kinds) > 1 and not self.kind_of_layer:
            message = f"give it, since there are {len(self.kinds)} kinds of layers"
            raise ScenarioError(message, where="kind_of_layer")
        for layer, kind in enumerate(self.kind_of_layer):
            if not 0 <= kind < len(self.kinds):
                raise ScenarioError(
                    f"must be 0 to {len(self.kinds) - 1}, a kind of layers, not {kind}",
                    where=f"kind_of_layer[{layer}]",
                )
        if not 0 <= self.decode_skew <= 1:
            raise ScenarioError(f"must be 0 to 1, not {self.decode_skew}", where="decode_skew")
        if self.tensor_parallel > 1 and self.all_reduce is None:
            raise ScenarioError(
                f"give it, since tensor_parallel is {self.tensor_parallel}", where="all_reduce"
            )

    def stage(self, start_layer: int, end_layer: int) -> StageTables:
        """Times of the mean layer among the layers ``[start_layer, end_layer)``."""
        if not self.kind_of_layer:
            return StageTables(self, ((1.0, self.kinds[0]),))
        held = self.kind_of_layer[start_layer:end_layer]
        shares = [(held.count(number) / len(held), kind) for number, kind in enumerate(self.kinds)]
        return StageTables(self, tuple((share, kind) for share, kind in shares if share))

    def last_s(self, num_tokens: int, num_sequences: int) -> float:
        """Seconds of what follows the last layer."""
        return self.final_norm(num_tokens) + self.head(num_sequences)


@dataclass(frozen=True, slots=True)
class StageTables:
    """Times of the mean layer of a stage: each kind counts by its share of the layers.

    Attributes
    ----------
    tables
        The tables of the whole LLM.
    kinds
        Share of the stage's layers, above 0, and the kind.
    """

    tables: OperatorTables
    kinds: tuple[tuple[float, LayerTables], ...]

    @property
    def token_points(self) -> set[int]:
        """Numbers of tokens at which the kinds were measured."""
        found = {point for _, kind in self.kinds for point in kind.dense.tokens}
        return found.union(
            *(kind.experts.tokens for _, kind in self.kinds if kind.experts is not None)
        )

    @property
    def decode_contexts(self) -> tuple[int, ...]:
        """Mean contexts of decodes at which the kinds were measured, increasing."""
        return tuple(sorted({at for _, kind in self.kinds for at in kind.attention.decode_context}))

    def layer_s(self, num_tokens: int, bytes_per_token: float) -> float:
        """Seconds of one layer without its attention.

        Parameters
        ----------
        num_tokens
            Tokens that go through the layer.
        bytes_per_token
            Size of a token's hidden state.
        """
        seconds = sum(share * kind(num_tokens) for share, kind in self.kinds)
        all_reduce, num_gpus = self.tables.all_reduce, self.tables.tensor_parallel
        if all_reduce is not None and num_gpus > 1:
            each = all_reduce(num_tokens * bytes_per_token, num_gpus)
            seconds += ALL_REDUCES_PER_LAYER * each
        return seconds

    def attention_s(
        self, chunk: float, chunk_context: float, decodes: float, decode_context: float
    ) -> float:
        """Seconds of one layer's attention for a chunk beside decodes with this mean context."""
        return sum(
            share * kind.attention(chunk, chunk_context, decodes, decode_context)
            for share, kind in self.kinds
        )
