"""An explanation as values: what binds a placement, and what one change would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from helixsim.display import drawing_image, short_text, table_html
from helixsim.placement.placement import Placement
from helixsim.planner.served_bound import ServedBound
from helixsim.studies.explain_goal import Goal
from helixsim.studies.explain_measures import Measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that binds a placement, or is wasted.

    Attributes
    ----------
    kind
        ``kv``, ``compute``, ``link``, ``interface``, ``blocking``, ``latency``, ``transfer``,
        ``idle``, ``rejected`` or ``preempted``.
    severity
        0 to 1, by which findings are ordered: the share of time, of latency, of requests or of
        machines that it concerns.
    text
        A sentence, or several.
    figures
        The figures of the text.
    nodes
        The nodes concerned.
    """

    kind: str
    severity: float
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One change, and what it would give.

    Attributes
    ----------
    kind
        ``machine``, ``idle``, ``routing``, ``bandwidth``, ``interface``, ``latency``, ``format``,
        ``memory`` or ``layers``.
    text
        The change in words.
    estimated_gain
        Gain of the goal's figure by the surrogate, as a share: 0.1 for 10 % more tokens per
        second, or a latency that is 10 % shorter.
    simulated_gain
        The same by a simulation; None if it was not simulated.
    figures
        Figures of that simulation, as :attr:`Explanation.figures`.
    dollars_per_hour
        What the change costs, if it needs a machine whose price is known.
    dollars_per_million_tokens
        That price over the additional output tokens, in dollars per million; None without a
        price, a simulation, or additional tokens.
    placement
        The placement with the change, if it differs.
    """

    kind: str
    text: str
    estimated_gain: float
    simulated_gain: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    dollars_per_hour: float | None = None
    dollars_per_million_tokens: float | None = None
    placement: Placement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the placement could serve at most, beside what it served.

    Attributes
    ----------
    max_flow_tokens_per_s
        Maximum flow, prompts included, at typical batches.
    total_tokens_per_s
        What was served, prompts included.
    cut
        The minimum cut of the flow, as a sentence.
    served_bound
        No run of these requests serves more in the long run; None where it is not known.
    """

    max_flow_tokens_per_s: float
    total_tokens_per_s: float
    cut: str
    served_bound: ServedBound | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What binds a placement, and what one change would give.

    Attributes
    ----------
    scenario
        Name of the scenario.
    goal
        The figure by which changes are ranked.
    figures
        Figures of the simulation: ``decode_tokens_per_s``, ``ttft_s.p95``, ``tpot_s.p95`` and so
        on, and ``slo.NAME.attainment``.
    findings
        What binds, the worst first.
    limits
        What could be served at most.
    what_ifs
        Changes: the simulated ones by their simulated gain, then all others by the estimate.
    measures
        What the simulation used of each node, stage and link.
    num_layers
        Layers of the LLM.
    notes
        Remarks.
    interrupted
        Whether Ctrl-C ended it early.
    """

    scenario: str
    goal: Goal
    figures: Mapping[str, float]
    findings: tuple[Finding, ...]
    limits: Limits
    what_ifs: tuple[WhatIf, ...]
    measures: Measures
    num_layers: int
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def simulated(self) -> tuple[WhatIf, ...]:
        """The changes that were simulated."""
        return tuple(each for each in self.what_ifs if each.simulated_gain is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``helixsim explain --json`` prints it."""
        bound = self.limits.served_bound
        document: dict[str, Any] = {
            "scenario": self.scenario,
            "goal": self.goal.figure,
            "figures": dict(self.figures),
            "findings": [
                {**asdict(each), "figures": dict(each.figures), "nodes": list(each.nodes)}
                for each in self.findings
            ],
            "limits": {
                "max_flow_tokens_per_s": self.limits.max_flow_tokens_per_s,
                "total_tokens_per_s": self.limits.total_tokens_per_s,
                "cut": self.limits.cut,
                "served_bound": None if bound is None else bound.to_json(),
            },
            "what_ifs": [_what_if_json(each) for each in self.what_ifs],
            "nodes": [asdict(each) for each in self.measures.nodes],
            "notes": list(self.notes),
        }
        return document | ({"partial": True} if self.interrupted else {})

    def __repr__(self) -> str:
        first = self.findings[0].text if self.findings else "nothing binds"
        return short_text("Explanation", f"{self.scenario}: {first}")

    def _repr_html_(self) -> str:
        from helixsim.studies.explain_text import what_if_rows

        rows = [("binds", each.text) for each in self.findings]
        rows += [("what if", " | ".join(row)) for row in what_if_rows(self)]
        picture = drawing_image("helixsim.drawing.explanation:explanation_figure", self)
        return table_html(f"Explanation of {self.scenario}", rows, picture=picture)


def _what_if_json(each: WhatIf) -> dict[str, Any]:
    placement = each.placement
    return {
        "kind": each.kind,
        "text": each.text,
        "estimated_gain": each.estimated_gain,
        "simulated_gain": each.simulated_gain,
        "figures": dict(each.figures) or None,
        "dollars_per_hour": each.dollars_per_hour,
        "dollars_per_million_tokens": each.dollars_per_million_tokens,
        "placement": None
        if placement is None
        else {name: list(layers) for name, layers in placement.layers.items()},
    }
