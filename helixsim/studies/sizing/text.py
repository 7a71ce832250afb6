"""Text of the result of sizing."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite

from helixsim.display import shortened
from helixsim.studies.sizing.result import SizeResult
from helixsim.studies.sizing.trials import Trial

_WATTS_PER_KILOWATT = 1000.0


def size_text(result: SizeResult) -> str:
    """The machines with their layout, what is proved and what was found, and what was tried."""
    return "\n".join(_lines(result))


def _lines(result: SizeResult) -> Iterator[str]:
    objectives = ", ".join(map(str, result.objectives))
    lost = ", with any one machine lost, too" if result.survive else ""
    yield f"{result.scenario} at {result.requests_per_s:g} requests/s with {objectives}{lost}"
    yield ""
    yield from _kind_lines(result)
    if result.tried:
        yield ""
        yield from _tried_lines(result)
    yield ""
    yield from _answer_lines(result)


def _kind_lines(result: SizeResult) -> Iterator[str]:
    width = max(len(kind.name) for kind in result.kinds)
    yield f"{'one of':<{width}}       $/h   serves at most   found to serve alone"
    for kind in result.kinds:
        most = "not known"
        if isfinite(kind.bound_requests_per_s):
            most = f"{kind.bound_requests_per_s:.3g}/s"
        alone = kind.sustained_requests_per_s
        found = "not measured" if alone is None else f"{alone:.3g}/s" if alone else "nothing"
        yield f"{kind.name:<{width}}  {kind.dollars_per_hour:>8.2f}   {most:>14}   {found:>20}"


def _tried_lines(result: SizeResult) -> Iterator[str]:
    names = {id(trial): _set_text(result, trial) for trial in result.tried}
    width = max(map(len, names.values()))
    yield f"{'tried':<{width}}       $/h   runs"
    ordered = sorted(result.tried, key=lambda trial: trial.dollars_per_hour)
    for trial in ordered:
        runs = "full" if trial.is_full else "short"
        without = f"without {trial.lost}: " if trial.lost and not trial.meets else ""
        end = f"met: {_figures_text(result, trial)}" if trial.meets else without + _misses(trial)
        name = names[id(trial)]
        yield f"{name:<{width}}  {trial.dollars_per_hour:>8.2f}   {runs:<5}  {end}"


def _misses(trial: Trial) -> str:
    return "not met: " + ("; ".join(trial.verdict.misses) or "clearly, by the short run")


def _figures_text(result: SizeResult, trial: Trial) -> str:
    parts = []
    for limit in result.objectives:
        mean = trial.verdict.figures[limit.figure]
        each = ", ".join(f"{own[limit.figure]:.4g}" for own in trial.by_seed.values())
        parts.append(f"{limit.figure} {mean:.4g}" + (f" ({each})" if len(result.seeds) > 1 else ""))
    return "; ".join(parts)


def _set_text(result: SizeResult, trial: Trial) -> str:
    return ", ".join(f"{n} x {name}" for name, n in result.named(trial.counts).items())


def _answer_lines(result: SizeResult) -> Iterator[str]:
    best, bound = result.best, result.lower_bound_dollars_per_hour
    if best is None:
        yield _failure(result)
    else:
        power = "" if result.watts is None else f", {result.watts / _WATTS_PER_KILOWATT:.3g} kW"
        yield f"found    {_set_text(result, best)}: {best.dollars_per_hour:.2f} $/h{power}"
        yield from (f"         {line}" for line in _layout_lines(result))
    if bound < inf:
        proof = result.lower_bound_counts
        which = "" if proof is None else f" (that of {_named(result, proof)})"
        gap = "" if result.gap is None else f"; an answer could be {result.gap:.0%} cheaper at most"
        yield f"proved   no set below {bound:.2f} $/h{which} serves the rate{gap}"
    if best is not None:
        untried = result.num_cheaper_untried
        yield (
            "         every cheaper set that could serve the rate was simulated: none meets the "
            "objectives"
            if not untried
            else f"         not proved: {untried:,} cheaper sets were not simulated, because the "
            "runs of others let expect too little of them"
            + (", or for lack of time" if result.ended else "")
        )


def _failure(result: SizeResult) -> str:
    if result.lower_bound_dollars_per_hour == inf:
        return (
            "no set of these machines serves the rate (proved): allow more of each (--max-each), "
            "other machines (--add), or a lower rate"
        )
    nearest = result.nearest
    if nearest is None and result.ended:
        return (
            f"the search ended ({result.ended}) before any set was simulated to the end: nothing "
            "is known of them; allow more time (--time-limit)"
        )
    reached = "nothing was simulated to the end"
    if nearest is not None:
        without = f" without {nearest.lost}" if nearest.lost else ""
        reached = f"nearest came {_set_text(result, nearest)}{without}: {_misses(nearest)}"
    why = f"before the search ended ({result.ended}), " if result.ended else ""
    return f"{why}no set met the objectives; {reached}"


def _named(result: SizeResult, counts: tuple[int, ...]) -> str:
    return ", ".join(f"{n} x {name}" for name, n in result.named(counts).items())


def _layout_lines(result: SizeResult) -> Iterator[str]:
    placement, sized = result.placement, result.sized
    assert placement is not None and sized is not None
    stages: dict[tuple[int, int], list[str]] = {}
    for name, span in placement.layers.items():
        stages.setdefault(span, []).append(name)
    for (start, end), names in sorted(stages.items()):
        yield f"[{start:3}, {end:3})  {shortened(names)}"
    idle = [node.name for node in sized.cluster if node.name not in placement.layers]
    if idle:
        yield f"idle        {shortened(idle)}"
