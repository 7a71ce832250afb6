"""Text of a calibration."""

from __future__ import annotations

from helixsim.calibration.fit import CalibrationResult

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
