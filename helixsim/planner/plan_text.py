"""Plans and bounds in words."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from helixsim.planner.max_flow.upper_bound import Bound
from helixsim.planner.result import PlanResult

_SHOWN = 12


def plan_text(result: PlanResult) -> str:
    """A plan as a few lines: how good, what it serves, who holds what."""
    return "\n".join(_lines(result))


def _lines(result: PlanResult) -> Iterator[str]:
    yield f"method      {result.method}, objective {result.objective}; {result.seconds:.1f} s"
    bound = result.upper_bound_tokens_per_s
    how_good = "no bound was proved"
    if result.optimal:
        how_good = "proved optimal"
    elif isfinite(bound):
        how_good = f"no placement has more than {bound:,.1f} (gap {result.gap:.1%})"
    yield f"max flow    {result.max_flow_tokens_per_s:,.1f} tokens/s; {how_good}"
    yield f"routes      {result.stages} nodes at most"
    served = result.simulated or {}
    if served:
        yield f"served      {_served(served)}"
        chosen = [each for each in result.candidates if each.chosen]
        for each in chosen:
            runs = "1 run" if each.seeds == 1 else f"{each.seeds} runs"
            yield f"            mean of {runs}, {each.simulated_s:g} s each"
        for each in result.candidates:
            if each.label == "own" and not each.chosen:
                yield f"before      {_served(each.figures)}"
    if len(result.front) > 1:
        yield "front       decode tokens/s   mean decode latency   stages"
        for each in result.front:
            mark = "  <- the plan" if each.chosen else ""
            yield (
                f"            {each.figures['decode_tokens_per_s']:15,.1f}   "
                f"{each.figures['decode_latency_s.mean']:17.3f} s   {each.stages:6}{mark}"
            )
    ranges = sorted(result.placement.layers.items(), key=lambda item: (item[1], item[0]))
    spans: dict[tuple[int, int], list[str]] = {}
    for name, span in ranges:
        spans.setdefault(span, []).append(name)
    for (start, end), names in spans.items():
        shown = ", ".join(names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"  [{start:3}, {end:3})  {shown}{more}"
    if result.unused:
        shown = ", ".join(result.unused[:_SHOWN])
        more = f" and {len(result.unused) - _SHOWN} more" if len(result.unused) > _SHOWN else ""
        yield f"unused      {shown}{more}"


def _served(figures: dict[str, float]) -> str:
    parts = [f"{figures['decode_tokens_per_s']:,.1f} decode tokens/s"]
    for name, words in (
        ("decode_latency_s.mean", "mean decode latency"),
        ("prompt_latency_s.mean", "mean prompt latency"),
    ):
        if name in figures:
            parts.append(f"{words} {figures[name]:.3f} s")
    return ", ".join(parts)


def bound_text(trivial: Bound, best: Bound, max_stages: int | None) -> str:
    """Bounds, and what holds the flow down to them."""
    lines = [
        f"trivial bound    {trivial.tokens_per_s:,.2f} tokens/s: what all machines do, over all "
        "layers",
        f"proved bound     {best.tokens_per_s:,.2f} tokens/s: no placement"
        + ("" if max_stages is None else f" with at most {max_stages} stages")
        + " has a greater maximum flow",
        f"what binds       {best.limit}",
    ]
    if best.prices:
        lines.append("one more         would hold, at this flow, so many more layers:")
        lines += [
            f"  {name:<14} {layers:.2f}"
            for name, layers in sorted(best.prices.items(), key=lambda item: -item[1])
        ]
    if best.stage_price > 0:
        lines.append(f"  stage          {best.stage_price:.2f}")
    return "\n".join(lines)
