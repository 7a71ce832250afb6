"""Operator tables from the roofline's formulas, sampled where these bend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture, LayerKind
from helixsim.profiles.operators import (
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorCurve,
    OperatorTables,
)
from helixsim.profiles.roofline import attention, matrices
from helixsim.profiles.roofline.collectives import all_reduce
from helixsim.profiles.roofline.efficiency import Efficiency
from helixsim.profiles.roofline.experts import experts_s
from helixsim.profiles.roofline.rates import Rates

TOKENS = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
"""Close together where matrix products turn from memory to computation."""

_SEQUENCES = (1, 32, 64, 128, 256, 512, 1024)
_CHUNKS = (0, 1, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
_CONTEXTS = (0, 1024, 8192, 131072)
_DECODES = (0, 1, 1024)
_LONG_CONTEXT = 131072
"""The time of decodes is linear in their number and, up to a window, in their context: few points
are enough."""


class RooflineTables:
    """Builds the tables of one LLM on one machine.

    Parameters
    ----------
    architecture, machine
        The LLM, and where it runs.
    efficiency
        All constants.
    generation
        Name of the constants of the GPU's generation.
    """

    def __init__(
        self,
        architecture: Architecture,
        machine: GpuMachine,
        efficiency: Efficiency,
        generation: str,
    ) -> None:
        self._llm = architecture
        self._machine = machine
        self._num_gpus = machine.num_gpus
        self._rates = Rates(machine.gpu, efficiency, efficiency.generations[generation])

    def tables(self, *, decode_skew: float, step_gap_s: float) -> OperatorTables:
        """The tables.

        Parameters
        ----------
        decode_skew, step_gap_s
            Which no data sheet says.
        """
        rates, llm, num_gpus = self._rates, self._llm, self._num_gpus
        several = len(llm.kinds) > 1
        return OperatorTables(
            kinds=tuple(self._layer(kind) for kind in llm.kinds),
            kind_of_layer=llm.kind_of_layer if several else (),
            embedding=_curve(TOKENS, lambda tokens: matrices.embedding_s(rates, llm, tokens)),
            final_norm=_curve(TOKENS, lambda tokens: matrices.final_norm_s(rates, llm, tokens)),
            head=_curve(
                _SEQUENCES,
                lambda count: (
                    matrices.head_s(rates, llm, count, num_gpus)
                    + matrices.sampler_s(rates, llm, count)
                ),
            ),
            decode_skew=decode_skew,
            tensor_parallel=num_gpus,
            all_reduce=all_reduce(self._machine, rates.efficiency) if num_gpus > 1 else None,
            step_gap_s=step_gap_s,
        )

    def _layer(self, kind: LayerKind) -> LayerTables:
        rates, llm, num_gpus = self._rates, self._llm, self._num_gpus
        return LayerTables(
            dense=_curve(
                TOKENS,
                lambda tokens: (
                    matrices.matrices_s(rates, llm, kind, tokens, num_gpus)
                    + matrices.small_kernels_s(rates, llm, kind, tokens, num_gpus)
                ),
            ),
            attention=self._attention(kind),
            experts=None if kind.experts is None else self._experts(kind),
        )

    def _attention(self, kind: LayerKind) -> AttentionTable:
        rates, llm, num_gpus = self._rates, self._llm, self._num_gpus
        fixed_s = rates.generation.attention_s

        def prefill_s(chunk: int, before: int) -> float:
            if not chunk:
                return 0.0
            return attention.prefill_s(rates, llm, kind, chunk, before, num_gpus)

        def decode_s(count: int, context: int) -> float:
            if not count:
                return 0.0
            return attention.decode_s(rates, llm, kind, count, context, num_gpus)

        window = kind.attention.window
        bend = () if window is None else (window,)
        before = tuple(sorted({*_CONTEXTS, *bend}))
        contexts = tuple(sorted({1, *bend, _LONG_CONTEXT}))
        chunks = {at: tuple(prefill_s(at, point) for point in before) for at in _CHUNKS}
        decodes = {at: tuple(decode_s(at, point) for point in contexts) for at in _DECODES}

        def together(chunk: int, point: int, count: int, context: int) -> float:
            # One kernel runs both.
            shared_s = fixed_s if chunk and count else 0.0
            return chunks[chunk][point] + decodes[count][context] - shared_s

        cells = product(_CHUNKS, range(len(before)), _DECODES, range(len(contexts)))
        return AttentionTable(
            _CHUNKS, before, _DECODES, contexts, tuple(together(*cell) for cell in cells)
        )

    def _experts(self, kind: LayerKind) -> ExpertTable:
        rates, llm, machine = self._rates, self._llm, self._machine
        experts = kind.experts
        assert experts is not None
        most, least = experts.num_experts, experts.experts_per_token
        points = sorted({least, *(most * part // 8 for part in (1, 2, 4, 6)), most})
        distinct = tuple(point for point in points if point >= least)
        times = (
            experts_s(
                rates,
                llm,
                experts,
                tokens,
                used,
                machine.num_gpus,
                spread=machine.spread_experts,
            )
            for tokens, used in product(TOKENS, distinct)
        )
        return ExpertTable(most, least, TOKENS, distinct, tuple(times))


def _curve(points: tuple[int, ...], seconds: Callable[[int], float]) -> OperatorCurve:
    return OperatorCurve(points, tuple(map(seconds, points)))
