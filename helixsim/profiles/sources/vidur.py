"""Folders of operator measurements in the format of Vidur's profiler.

Times are in milliseconds, medians of several runs, of one of the GPUs that share a layer:

.. code-block:: text

    mlp         num_tokens, num_tensor_parallel_workers, time_stats.<operator>.median
    attention   num_tensor_parallel_workers, batch_size, prefill_chunk_size, kv_cache_size,
                is_prefill, time_stats.attn_prefill.median, time_stats.attn_decode.median
    all_reduce  num_workers, size (bytes), time_stats.all_reduce.median   with several GPUs

A file may have rows of several LLMs, told apart by ``n_embd`` (hidden size), ``n_head`` or
``n_q_head``, ``n_kv_head`` and ``n_expanded_embd`` (width of the feed-forward block).

It measures no head: the head takes the time of the feed-forward block's first matrix for as many
weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from helixsim.errors import InputError
from helixsim.llms.architecture import Architecture
from helixsim.profiles.csv_folder import CsvFolder
from helixsim.profiles.measured_grids import curve_of, simplified, sum_of_curves
from helixsim.profiles.operator_csv import DEFAULT_SKEW
from helixsim.profiles.operators import (
    AllReduce,
    AttentionTable,
    LayerTables,
    OperatorCurve,
    OperatorTables,
)
from helixsim.profiles.sources.hub_config import feed_forward_of

_MS = 1e-3
_RESOLUTION_S = 1e-6
_LAYER = (
    *("input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj"),
    *("post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add"),
)
"""Operators of a layer. Each residual connection adds once, so `add` counts twice."""
_TOLERANCE = 0.01
_STEP = 1.25
"""Numbers of tokens and decodes of the attention grow by this factor at least."""


def is_vidur_folder(folder: Path) -> bool:
    """Whether a folder has files of this format."""
    return (folder / "mlp.csv").exists() or (folder / "mlp.csv.gz").exists()


class VidurFolder(CsvFolder):
    """A folder of measurements of one LLM on one kind of GPU.

    Raises
    ------
    InputError
        If it does not exist; all methods: if a file is missing or invalid, or has no rows of a
        number of GPUs.
    """

    def tables(
        self, architecture: Architecture, num_gpus: int, step_gap_s: float
    ) -> OperatorTables:
        """The operator tables of an LLM on a machine with GPUs that share each layer."""
        if len(architecture.kinds) > 1 or architecture.kinds[0].experts is not None:
            raise InputError(
                f"has times of equal layers without experts, but {architecture.name} has others",
                file=self.folder,
            )
        attention = architecture.kinds[0].attention
        width = feed_forward_of(architecture.kinds[0]).width
        llm = {
            "n_embd": architecture.hidden_size,
            "n_head": attention.num_heads,
            "n_q_head": attention.num_heads,
            "n_kv_head": attention.num_kv_heads,
            "n_expanded_embd": width,
        }
        curves = self._matrices(num_gpus, llm)
        layer = {name: curves[name] for name in _LAYER}
        weights = {name: 2 if name == "add" else 1 for name in _LAYER}
        dense = simplified(sum_of_curves(layer, weights), _TOLERANCE)
        return OperatorTables(
            kinds=(LayerTables(dense, self._attention(num_gpus, llm)),),
            embedding=simplified(curves["emb"], _TOLERANCE),
            final_norm=simplified(curves["input_layernorm"], _TOLERANCE),
            head=_scaled(curves["mlp_up_proj"], architecture.vocab_size / (2 * width)),
            decode_skew=DEFAULT_SKEW,
            tensor_parallel=num_gpus,
            all_reduce=self._all_reduce(num_gpus) if num_gpus > 1 else None,
            step_gap_s=step_gap_s,
        )

    def _matrices(self, num_gpus: int, llm: Mapping[str, int]) -> dict[str, OperatorCurve]:
        """Curves of the operators that depend on the number of tokens only."""
        columns = {name: f"time_stats.{name}.median" for name in ("emb", *_LAYER)}
        rows = self._rows_of("mlp", num_gpus, llm, ("num_tokens", *columns.values()))
        found: dict[str, dict[int, list[float]]] = {name: {} for name in columns}
        for line, row in rows:
            tokens = self.count("mlp", line, row, "num_tokens")
            for name, column in columns.items():
                seconds = self._time_s("mlp", line, row, column)
                found[name].setdefault(tokens, []).append(seconds)
        return {name: curve_of(_means(times)) for name, times in found.items()}

    def _attention(self, num_gpus: int, llm: Mapping[str, int]) -> AttentionTable:
        """The attention: chunks and decodes were measured alone, together they take the sum."""
        chunks, decodes = self._attention_curves(num_gpus, llm)
        axes = (
            (0, *_thinned(chunks)),
            _thinned({at for curve in chunks.values() for at in curve.tokens}),
            (0, *_thinned(decodes)),
            _thinned({at for curve in decodes.values() for at in curve.tokens}),
        )
        seconds = tuple(
            (chunks[chunk](before) if chunk else 0.0) + (decodes[count](context) if count else 0.0)
            for chunk, before, count, context in product(*axes)
        )
        return AttentionTable(*axes, seconds)

    def _attention_curves(
        self, num_gpus: int, llm: Mapping[str, int]
    ) -> tuple[dict[int, OperatorCurve], dict[int, OperatorCurve]]:
        """Size of a chunk, and number of decodes -> curve over contexts."""
        medians = {name: f"time_stats.{name}.median" for name in ("attn_prefill", "attn_decode")}
        columns = ("batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill")
        rows = self._rows_of("attention", num_gpus, llm, (*columns, *medians.values()))
        found: tuple[dict[int, dict[int, list[float]]], ...] = ({}, {})
        for line, row in rows:
            is_prefill = self._flag(line, row)
            batch = self.count("attention", line, row, "batch_size")
            if is_prefill and batch != 1:
                continue  # several chunks at once: our tables have one
            size = batch
            if is_prefill:
                size = self.count("attention", line, row, "prefill_chunk_size")
            column = medians["attn_prefill" if is_prefill else "attn_decode"]
            seconds = self._time_s("attention", line, row, column)
            context = self.count("attention", line, row, "kv_cache_size")
            times = found[0 if is_prefill else 1].setdefault(size, {})
            times.setdefault(context, []).append(seconds)
        for kind, times_of in zip(("prefills", "decodes"), found, strict=True):
            if not times_of:
                raise InputError(f"has no rows of {kind}", file=self.path("attention"))
        chunks, decodes = (
            {size: curve_of(_means(times)) for size, times in times_of.items()}
            for times_of in found
        )
        return chunks, decodes

    def _all_reduce(self, num_gpus: int) -> AllReduce:
        """The line through the least and the most data."""
        columns = ("num_workers", "size", "time_stats.all_reduce.median")
        found: dict[int, list[float]] = {}
        for line, row in self.rows("all_reduce", columns):
            if self.count("all_reduce", line, row, "num_workers") == num_gpus:
                size = self.count("all_reduce", line, row, "size")
                found.setdefault(size, []).append(
                    self.seconds("all_reduce", line, row, columns[2], _MS)
                )
        times = _means(found)
        if len(times) < 2 or max(times) == 0:
            message = f"has not two sizes of {num_gpus} workers"
            raise InputError(message, file=self.path("all_reduce"))
        least, most = min(times), max(times)
        rise_s = times[most] - times[least]
        if rise_s <= 0:
            message = f"the time of {num_gpus} workers does not rise with the size"
            raise InputError(message, file=self.path("all_reduce"))
        share = 2 * (num_gpus - 1) / num_gpus
        rate = share * (most - least) / rise_s
        return AllReduce(max(times[least] - share * least / rate, 0.0), rate)

    def _rows_of(
        self, name: str, num_gpus: int, llm: Mapping[str, int], columns: Sequence[str]
    ) -> list[tuple[int, dict[str, str]]]:
        """Rows of this number of GPUs and this LLM."""
        workers = "num_tensor_parallel_workers"
        rows = self.rows(name, (workers, *columns))
        told = {column: size for column, size in llm.items() if column in rows[0][1]}
        of_llm = [
            (line, row)
            for line, row in rows
            if all(self.count(name, line, row, column) == size for column, size in told.items())
        ]
        if not of_llm:
            sizes = ", ".join(f"{column} {size}" for column, size in told.items())
            raise InputError(f"has no rows of an LLM with {sizes}", file=self.path(name))
        counts = [self.count(name, line, row, workers) for line, row in of_llm]
        found = [row for row, count in zip(of_llm, counts, strict=True) if count == num_gpus]
        if not found:
            known = ", ".join(map(str, sorted(set(counts))))
            message = f"has no rows of {num_gpus} GPUs, only of {known} ({workers})"
            raise InputError(message, file=self.path(name))
        return found

    def _time_s(self, name: str, line: int, row: Mapping[str, str], column: str) -> float:
        """A time; one that the profiler rounded to zero is below its resolution of 1 us."""
        if self.number(name, line, row, column) == 0:
            return _RESOLUTION_S / 2
        return self.seconds(name, line, row, column, _MS)

    def _flag(self, line: int, row: Mapping[str, str]) -> bool:
        text = row["is_prefill"].strip().lower()
        if text not in ("true", "false"):
            message = f"must be True or False, not '{row['is_prefill'][:40]}'"
            raise self.error("attention", line, "is_prefill", message)
        return text == "true"


def _means(times: Mapping[int, Iterable[float]]) -> dict[int, float]:
    """Several measurements of a point are one."""
    return {point: fmean(found) for point, found in times.items()}


def _scaled(curve: OperatorCurve, factor: float) -> OperatorCurve:
    seconds = tuple(factor * value for value in curve.seconds)
    return simplified(OperatorCurve(curve.tokens, seconds), _TOLERANCE)


def _thinned(values: Iterable[int]) -> tuple[int, ...]:
    """Some of the values: the first, the last, and others that are not too near to one another."""
    known = sorted(values)
    kept = known[:1]
    for value in known[1:]:
        if value >= _STEP * kept[-1]:
            kept.append(value)
    if kept[-1] != known[-1]:
        kept[-1:] = [known[-1]] if len(kept) > 1 else [*kept, known[-1]]
    return tuple(kept)
