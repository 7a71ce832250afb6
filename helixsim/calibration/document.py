"""A calibration as an engine file."""

from __future__ import annotations

from math import isfinite
from typing import Any

from helixsim.calibration.fit import CalibrationResult, Quality
from helixsim.physics.engine import GpuCosts
from helixsim.units import format_bytes_per_s


def engine_document(found: CalibrationResult, source: str) -> dict[str, Any]:
    """The engine file of a calibration, as plain data.

    Parameters
    ----------
    found
        The calibration.
    source
        Origin of the figures, for readers.
    """
    engine, known = found.engine, found.engine.known
    document: dict[str, Any] = {
        "schema": 1,
        "kind": "engine",
        "name": engine.name,
        "source": source,
        "batching": engine.batching,
        "max_batched_tokens": engine.max_batched_tokens,
        "profile_context_tokens": engine.profile_context_tokens,
        "per_further_request": _ms(engine.further_request_s),
        "per_prompt": _ms(engine.prompt_s),
        "copy_bandwidth": _rate(engine.copy_bytes_per_s),
        "send_bandwidth": _rate(engine.send_bytes_per_s),
        "per_message": _ms(engine.message_s),
        "poll_per_layer": _ms(engine.poll_layer_s),
        "delivery_jitter": _ms(engine.delivery_jitter_s),
        "machine_types": {name: _gpu(costs) for name, costs in sorted(engine.gpus.items())},
        "other_machine_types": _gpu(engine.other_gpus),
        "fit": [_fit(quality) for quality in found.quality],
    }
    if known is not None:
        document["valid_for"] = {
            "machine_types": list(known.machine_types),
            "llms": list(known.llms),
            "max_in_flight": known.max_in_flight,
            "max_prompt_tokens": known.max_prompt_tokens,
            "max_context_tokens": known.max_context_tokens,
            "max_decode_tokens_per_s": round(known.max_decode_tokens_per_s, 1),
        }
    return document


def _gpu(costs: GpuCosts) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "prefill_scale": float(f"{costs.prefill_scale:.4g}"),
        "per_layer_and_pass": _ms(costs.layer_pass_s),
        "several_decodes": _ms(costs.several_decodes_s),
    }
    if isfinite(costs.kv_read_bytes_per_s):
        plain["kv_read_bandwidth"] = _rate(costs.kv_read_bytes_per_s)
    return plain


def _fit(quality: Quality) -> dict[str, Any]:
    error = quality.error
    return {
        "run": quality.run,
        "scenario": quality.scenario,
        "held_out": quality.held_out,
        "decode_tokens_per_s": _share(error["decode_tokens_per_s"]),
        "decode_latency_mean": _share(error["decode_latency_s"]["mean"]),
        "decode_latency_p50": _share(error["decode_latency_s"]["p50"]),
        "decode_latency_p95": _share(error["decode_latency_s"]["p95"]),
        "prompt_latency_mean": _share(error["prompt_latency_s"]["mean"]),
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.4g} ms"


def _rate(bytes_per_s: float) -> str:
    return format_bytes_per_s(float(f"{bytes_per_s:.4g}"))


def _share(error: float | None) -> float | None:
    return None if error is None else round(error, 4)
