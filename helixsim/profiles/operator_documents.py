"""Operator tables as the block `operators` of a machine file, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helixsim.profiles.operator_spec import OperatorsSpec
from helixsim.profiles.operators import (
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorCurve,
    OperatorTables,
)
from helixsim.yaml_files import validate

_ATTENTION_AXES = ("chunk", "chunk_context", "decodes", "decode_context")


def operators_document(
    tables: OperatorTables,
    *,
    step_gap: str | None = None,
    all_reduce: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The block of a machine file, with four significant digits: measurements scatter more.

    Parameters
    ----------
    tables
        The tables.
    step_gap, all_reduce
        The gap, and latency and bandwidth of an all-reduce, as the user wrote them.
    """
    first = tables.kinds[0]
    document: dict[str, Any] = {}
    if len(tables.kinds) == 1:
        document["dense"] = _curve(first.dense)
    document |= {
        "embedding": _curve(tables.embedding),
        "final_norm": _curve(tables.final_norm),
        "head": _curve(tables.head),
    }
    if len(tables.kinds) == 1:
        document["attention"] = _attention(first.attention)
    else:
        document["kinds"] = [_layers(kind) for kind in tables.kinds]
        document["kind_of_layer"] = list(tables.kind_of_layer)
    document |= {
        "decode_skew": rounded(tables.decode_skew),
        "tensor_parallel": tables.tensor_parallel,
        "step_gap": step_gap or f"{rounded(tables.step_gap_s * 1e6):g} us",
    }
    if tables.all_reduce is not None:
        latency, bandwidth = all_reduce or (
            f"{rounded(tables.all_reduce.latency_s * 1e6):g} us",
            f"{rounded(tables.all_reduce.bytes_per_s / 1e9):g} GB/s",
        )
        document["all_reduce"] = {"latency": latency, "bandwidth": bandwidth}
    if len(tables.kinds) == 1 and first.experts is not None:
        document["experts"] = _experts(first.experts)
    return document


def tables_of_document(document: dict[str, Any]) -> OperatorTables:
    """The tables of a block of a machine file.

    Raises
    ------
    ScenarioError
        If it is none.
    """
    return validate(OperatorsSpec, document, None).to_tables()


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def _layers(kind: LayerTables) -> dict[str, Any]:
    document = {"dense": _curve(kind.dense), "attention": _attention(kind.attention)}
    if kind.experts is not None:
        document["experts"] = _experts(kind.experts)
    return document


def _attention(table: AttentionTable) -> dict[str, Any]:
    axes = dict(zip(_ATTENTION_AXES, map(list, table.axes), strict=True))
    return {**axes, "ms": _ms(table.seconds)}


def _experts(table: ExpertTable) -> dict[str, Any]:
    return {
        "num_experts": table.num_experts,
        "experts_per_token": table.experts_per_token,
        "tokens": list(table.tokens),
        "experts": list(table.experts),
        "ms": _ms(table.seconds),
    }


def _curve(curve: OperatorCurve) -> dict[str, Any]:
    return {"tokens": list(curve.tokens), "ms": _ms(curve.seconds)}


def _ms(seconds: Sequence[float]) -> list[float]:
    return [rounded(1000 * value) for value in seconds]
