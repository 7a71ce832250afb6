"""Text of recorded and replayed runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helixsim.metrics.sample import PERCENTILES

_TITLES = {"prompt_latency_s": "prompt latency", "decode_latency_s": "decode latency"}
_COLUMNS = ("mean", *(f"p{p}" for p in PERCENTILES))


def comparison_text(found: Mapping[str, Any]) -> str:
    """A recorded run beside its replay, with errors."""
    start, end = found["window_s"]
    seeds = len(found["seeds"])
    lines = [
        f"{found['run']} in {found['scenario']} ({found['physics']} physics, "
        f"{'mean of ' if seeds > 1 else ''}{seeds} seed{'s' * (seeds > 1)}), "
        f"measured from {start:g} s to {end:g} s",
        "",
        f"{'':<26}{'recorded':>10}{'simulated':>11}{'error':>9}",
        _row("decode throughput tokens/s", *_sides(found, "decode_tokens_per_s")),
    ]
    for key, title in _TITLES.items():
        lines += [
            _row(f"{title + ' s':<18} {column}", *_sides(found, key, column)) for column in _COLUMNS
        ]
    return "\n".join(lines)


def inspection_text(found: Mapping[str, Any]) -> str:
    """Figures and routes of a recorded run."""
    start, end = found["window_s"]
    loop = "closed loop" if found["closed_loop"] else "open loop"
    lines = [
        f"{found['run']}: {found['length_s']:.1f} s, {loop}, {found['nodes']} nodes",
        f"requests: {found['requests']} sent, {found['completed']} completed; on average "
        f"{found['mean_prompt_tokens']:.0f} prompt and {found['mean_output_tokens']:.0f} output "
        "tokens",
        "",
        f"measured from {start:g} s to {end:g} s",
        f"decode throughput  {found['decode_tokens_per_s']:10.1f} tokens/s",
        " " * 18 + "".join(f"{name:>9}" for name in _COLUMNS),
    ]
    for key, title in _TITLES.items():
        figures = "".join(f"{_figure(found[key][column]):>9}" for column in _COLUMNS)
        lines.append(f"{title + ' s':<18}{figures}")
    lines += ["", f"{found['routes']} routes; the most frequent ones:"]
    lines += [f"{each['requests']:>5}  {each['route']}" for each in found["busiest_routes"]]
    return "\n".join(lines)


def _sides(
    found: Mapping[str, Any], key: str, column: str | None = None
) -> tuple[float | None, float | None, float | None]:
    recorded, simulated, error = (
        found[side][key] if column is None else found[side][key][column]
        for side in ("recorded", "simulated", "error")
    )
    return recorded, simulated, error


def _row(title: str, recorded: float | None, simulated: float | None, error: float | None) -> str:
    shown = "-" if error is None else f"{error:+.1%}"
    return f"{title:<26}{_figure(recorded):>10}{_figure(simulated):>11}{shown:>9}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
