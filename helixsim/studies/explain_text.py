"""An explanation as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap

from helixsim.placement.cut_text import count_text
from helixsim.studies.explain_result import Explanation, WhatIf

_WIDTH = 100
MOST_WHAT_IFS = 12
_LEAST_GAIN = 0.001
"""Further and smaller changes are in the JSON only."""


def explanation_text(explanation: Explanation) -> str:
    """All of an explanation, on a screen or two."""
    lines = [f"{explanation.scenario}: {figures_text(explanation.figures)}", ""]
    lines.append("What binds, the worst first:")
    lines += _paragraphs([each.text for each in explanation.findings] or ["nothing."])
    lines += ["", "What it could serve:", *_paragraphs(limit_texts(explanation))]
    if explanation.what_ifs:
        lines += ["", _what_if_title(explanation)]
        lines += _table(what_if_rows(explanation))
        if left := len(explanation.what_ifs) - len(worthwhile(explanation)):
            lines.append(f"{'':>24}and {count_text(left, 'change')} of which less is expected")
    lines += [f"note: {note}" for note in explanation.notes]
    return "\n".join(lines)


def figures_text(figures: Mapping[str, float]) -> str:
    """The main figures of a run in one line."""
    parts = [f"{figures['decode_tokens_per_s']:,.1f} decode tokens/s"]
    for name, title in (("ttft_s.p95", "TTFT"), ("tpot_s.p95", "TPOT")):
        if name in figures:
            parts.append(f"{title} p95 {figures[name]:.3g} s")
    for name, value in figures.items():
        if name.startswith("slo."):
            parts.append(f"SLO {name.split('.')[1]} {value:.1%}")
    return ", ".join(parts)


def limit_texts(explanation: Explanation) -> list[str]:
    """What the placement could serve at most, beside what it served."""
    limits = explanation.limits
    texts = [
        f"{limits.cut} Served with prompts: {limits.total_tokens_per_s:,.1f} tokens/s; a maximum "
        "flow is an estimate, and more may be served."
    ]
    if (bound := limits.served_bound) is not None:
        served = explanation.figures["decode_tokens_per_s"]
        share = served / bound.decode_tokens_per_s if bound.decode_tokens_per_s else 0.0
        by = f", limited by {', '.join(bound.limited_by)}" if bound.limited_by else ""
        texts.append(
            f"No run serves more than {bound.decode_tokens_per_s:,.1f} decode tokens/s in the long "
            f"run{by}; this one served {share:.0%} of it."
        )
    return texts


def what_if_rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """Rows of the table of changes: estimated gain, simulated gain, the change and its figures."""
    return [
        (gain_text(each.estimated_gain), _simulated_text(each), each.text + _price_text(each))
        for each in worthwhile(explanation)
    ]


def worthwhile(explanation: Explanation) -> list[WhatIf]:
    """The changes that are shown: the simulated ones, and some with an estimated gain."""
    found = [
        each
        for each in explanation.what_ifs
        if each.simulated_gain is not None or each.estimated_gain >= _LEAST_GAIN
    ]
    return found[:MOST_WHAT_IFS]


def gain_text(gain: float) -> str:
    """A gain as a percentage with its sign."""
    return f"{gain:+.1%}"


def _what_if_title(explanation: Explanation) -> str:
    goal = explanation.goal
    why = f" ({goal.reason})" if goal.reason else ""
    kind = "more" if goal.is_throughput else "less"
    return f"What one change would give, as {kind} of {goal.figure}{why}:"


def _simulated_text(each: WhatIf) -> str:
    if each.simulated_gain is None:
        return "-"
    return f"{gain_text(each.simulated_gain)}"


def _price_text(each: WhatIf) -> str:
    """Price of a change, and its figures where it was simulated."""
    parts = []
    if each.figures:
        parts.append(figures_text(each.figures))
    if each.dollars_per_hour is not None:
        text = f"{each.dollars_per_hour:,.2f} $/h"
        if each.dollars_per_million_tokens is not None:
            text += f", {each.dollars_per_million_tokens:,.2f} $ per million additional tokens"
        parts.append(text)
    return f" ({'; '.join(parts)})" if parts else ""


def _paragraphs(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from wrap(text, _WIDTH, initial_indent="- ", subsequent_indent="  ")


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"{'estimated':>10}  {'simulated':>10}  change"
    for estimated, simulated, text in rows:
        first, *rest = wrap(text, _WIDTH - 24)
        yield f"{estimated:>10}  {simulated:>10}  {first}"
        yield from (f"{'':>24}{line}" for line in rest)
