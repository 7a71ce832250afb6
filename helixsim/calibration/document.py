"""A calibration as an engine file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from helixsim.units import format_bytes_per_s

if TYPE_CHECKING:
    from helixsim.calibration.fit import CalibrationResult, Quality
    from helixsim.physics.engine import EngineCosts


def engine_document(found: CalibrationResult, source: str) -> dict[str, Any]:
    """The engine file of a calibration, as plain data.

    Parameters
    ----------
    found
        The calibration.
    source
        Origin of the figures, for readers.
    """
    engine = found.engine
    document = engine_section(engine, source)
    document["fit"] = [_fit(quality) for quality in found.quality]
    return document


def engine_section(engine: EngineCosts, source: str) -> dict[str, Any]:
    """An engine as plain data, without errors of a fit."""
    return {"schema": 1, "kind": "engine", **_section(engine), "source": source}


def _section(values: BaseModel) -> dict[str, Any]:
    """Keys and values of a part of the file, as in the model, with units."""
    plain: dict[str, Any] = {}
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if value is not None and name not in ("schema_version", "kind", "source", "fit"):
            plain[field.alias or name] = _plain(name, value)
    return plain


def _plain(name: str, value: object) -> object:
    if isinstance(value, BaseModel):
        return _section(value)
    if isinstance(value, dict):
        return {key: _plain(key, inner) for key, inner in sorted(value.items())}
    if isinstance(value, tuple):
        return list(value)
    return _quantity(name, value) if isinstance(value, float) else value


def _quantity(name: str, value: float) -> object:
    """A number with the unit that its name tells, to four digits."""
    if name.endswith("tokens_per_s"):
        return round(value, 1)
    if name.endswith("bytes_per_s"):
        return format_bytes_per_s(float(f"{value:.4g}"))
    return f"{value * 1000:.4g} ms" if name.endswith("_s") else float(f"{value:.4g}")


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


def _share(error: float | None) -> float | None:
    return None if error is None else round(error, 4)


_FIGURES = (
    ("throughput", "decode_tokens_per_s", None),
    ("decode mean", "decode_latency_s", "mean"),
    ("p50", "decode_latency_s", "p50"),
    ("p95", "decode_latency_s", "p95"),
    ("prompt mean", "prompt_latency_s", "mean"),
)


def calibration_text(found: CalibrationResult) -> str:
    """Errors of the engine on each run, and its range of validity."""
    known = found.engine.known
    lines = [
        f"engine {found.engine.name}: {found.evaluations} evaluated, loss {found.loss:.4f} "
        f"(initially {found.start_loss:.4f})",
        "",
        f"{'errors of replays':<46}" + "".join(f"{title:>13}" for title, _, _ in _FIGURES),
    ]
    for quality in found.quality:
        name = quality.run + (" (held out)" if quality.held_out else "")
        errors = [
            quality.error[key] if column is None else quality.error[key][column]
            for _, key, column in _FIGURES
        ]
        lines.append(
            f"{name:<46}"
            + "".join(f"{'-' if error is None else format(error, '+.1%'):>13}" for error in errors)
        )
    if known is not None:
        lines += [
            "",
            f"fitted on {', '.join(known.machine_types)} serving {', '.join(known.llms)}: up to "
            f"{known.max_decode_tokens_per_s:.0f} decode tokens/s and {known.max_in_flight} "
            f"requests in flight, prompts of {known.max_prompt_tokens} and contexts of "
            f"{known.max_context_tokens} tokens; outside this range, the engine extrapolates",
        ]
    return "\n".join(lines)
