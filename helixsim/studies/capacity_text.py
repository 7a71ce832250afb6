"""Text of a search for the highest rate."""

from __future__ import annotations

from collections.abc import Mapping

from helixsim.studies.capacity import CapacitySearch
from helixsim.studies.capacity_interval import MIN_SEEDS
from helixsim.studies.capacity_result import CapacityResult, Probe

_LATENCIES = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("e2e_s", "end to end"),
)
_STATISTICS = ("mean", "p50", "p95", "p99")


def heading_text(search: CapacitySearch) -> str:
    """Title of the search, and heads of the columns of :func:`probe_text`."""
    objectives = ", ".join(map(str, search.objectives))
    heads = "".join(f"{limit.figure:>{_width(limit.figure)}}" for limit in search.objectives)
    return (
        f"{search.name}: highest {search.path} with {objectives}\n"
        f"on the mean of seeds {', '.join(map(str, search.seeds))}\n\n"
        f"{'rate':>10}{'requests/s':>12}{'sustained':>11}{heads}"
    )


def probe_text(probe: Probe, search: CapacitySearch) -> str:
    """One rate in a line."""
    verdict = probe.verdict
    values = "".join(
        f"{_number(verdict.figures, limit.figure):>{_width(limit.figure)}}"
        for limit in search.objectives
    )
    end = "met" if probe.meets else f"not met: {'; '.join(verdict.misses)}"
    sustained = format(verdict.sustained, ".1%") if verdict.sustained >= 0 else "-"
    return f"{probe.rate:>10g}{probe.requests_per_s:>12.4g}{sustained:>11}{values}  {end}"


def capacity_text(result: CapacityResult) -> str:
    """The highest rate, and the figures at that rate."""
    best, above = result.best, result.above
    if best is None:
        lowest = min((probe.rate for probe in result.probes), default=None)
        tried = "nothing was tried" if lowest is None else f"down to {result.path}={lowest:g}"
        return f"no rate meets the objectives, {tried}"
    figures = best.verdict.figures
    limit = "no higher rate was tried" if above is None else f"not met at {above.rate:g}"
    lines = [
        f"capacity: {result.path}={best.rate:g}, that is {best.requests_per_s:.4g} requests/s; "
        + limit,
        *_interval_lines(result),
        "",
        " " * 24 + "".join(f"{name:>9}" for name in _STATISTICS),
    ]
    lines += [
        f"{title:<22} s"
        + "".join(f"{_number(figures, f'{key}.{name}'):>9}" for name in _STATISTICS)
        for key, title in _LATENCIES
    ]
    lines += ["", f"output throughput {figures['output_tokens_per_s']:.1f} tokens/s"]
    end = ".goodput_requests_per_s"
    for name in figures:
        if name.startswith("slo.") and name.endswith(end):
            slo = name.removesuffix(end)
            kept = _number(figures, f"{slo}.attainment")
            lines.append(
                f"goodput of {slo.removeprefix('slo.')}: {figures[name]:.3f} requests/s, "
                f"{figures[f'{slo}.goodput_output_tokens_per_s']:.1f} output tokens/s "
                f"(attainment: {kept})"
            )
    if "cost.dollars_per_hour" in figures:
        lines.append(
            f"cost: {figures['cost.dollars_per_hour']:.2f} $/h; "
            f"{_number(figures, 'cost.dollars_per_million_output_tokens')} $ per million output "
            f"tokens; {_number(figures, 'cost.dollars_per_million_total_tokens')} $ per million "
            "tokens, prompts included"
        )
    return "\n".join(lines)


def _interval_lines(result: CapacityResult) -> list[str]:
    found = result.interval
    num_seeds = len(result.seeds)
    if found is None and num_seeds < MIN_SEEDS:
        seeds = f"{num_seeds} seed{'s' * (num_seeds > 1)}"
        return [f"no confidence interval from {seeds}: give --seeds {MIN_SEEDS} or more"]
    if found is None:
        return []
    return [
        f"95 % confidence interval: {found.low:.4g} to {found.high:.4g} requests/s, from "
        f"{len(found.by_seed)} seeds, each by itself"
    ]


def _width(figure: str) -> int:
    return max(len(figure), 8) + 2


def _number(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else "-"
