"""What machines of one kind serve within the objectives: a bisection by short runs.

The figures tell which sets of machines to try first. They prove nothing: machines serve other rates
beside machines of other kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import sqrt

from helixsim.errors import HelixError
from helixsim.scenario.resolved import Scenario
from helixsim.studies.sizing.facts import MachineFacts
from helixsim.studies.sizing.layouts import layouts
from helixsim.studies.sizing.offers import Fleet
from helixsim.studies.sizing.trials import Trials

_ROUNDS = 5
_RANGE = 32.0
"""The lowest rate that is tried is about this many times below the highest."""
_ENOUGH = 1.25
"""Machines that serve this many times the whole rate need no higher figure."""


def sustained_rates(
    trials: Trials, fleet: Fleet, facts: Sequence[MachineFacts]
) -> tuple[float, ...]:
    """Requests per second that one machine of each offer serves in a cluster of its kind.

    Returns
    -------
    tuple
        For each offer; 0 if no rate that was tried meets the objectives.

    Raises
    ------
    OutOfTimeError
        If the time limit ends it.
    """
    cases: list[tuple[int, int, Scenario]] = []
    for index, each in enumerate(facts):
        # Two groups, where one machine cannot hold the LLM: their layouts may differ.
        count = each.group if each.group == 1 else 2 * each.group
        with suppress(HelixError):
            cases += [(index, count, option) for option in layouts(fleet.alone(index, count))]
    above = [
        min(count * facts[index].guess_requests_per_s, _ENOUGH * trials.requests_per_s)
        for index, count, _ in cases
    ]
    below = [0.0] * len(cases)
    for number in range(_ROUNDS):
        trials.on_step(f"machines of one kind: round {number + 1} of {_ROUNDS}")
        left = [case for case in range(len(cases)) if below[case] < above[case]]
        rates = [
            sqrt(above[case] * (below[case] or above[case] / _RANGE)) if number else above[case]
            for case in left
        ]
        met = trials.sustain(
            [(cases[case][2], rate) for case, rate in zip(left, rates, strict=True)]
        )
        for case, rate, is_met in zip(left, rates, met, strict=True):
            (below if is_met else above)[case] = rate
    found = [0.0] * len(facts)
    for (index, count, _), rate in zip(cases, below, strict=True):
        found[index] = max(found[index], rate / count)
    return tuple(found)
