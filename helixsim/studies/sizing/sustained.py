"""What machines of one kind serve within the objectives: a bisection by short runs.

The figures tell which sets of machines to try first. They prove nothing: machines serve other rates
beside machines of other kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from helixsim.studies.sizing.facts import MachineFacts
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
    # Two groups, where one machine cannot hold the LLM: one alone has hardly any room for caches.
    counts = [each.group if each.group == 1 else 2 * each.group for each in facts]
    clusters = [fleet.alone(index, count) for index, count in enumerate(counts)]
    above = [
        min(count * each.guess_requests_per_s, _ENOUGH * trials.requests_per_s)
        for count, each in zip(counts, facts, strict=True)
    ]
    below = [0.0] * len(facts)
    for number in range(_ROUNDS):
        trials.on_step(f"machines of one kind: round {number + 1} of {_ROUNDS}")
        rates = [
            sqrt(high * (low or high / _RANGE)) if number else high
            for low, high in zip(below, above, strict=True)
        ]
        met = trials.sustain(list(zip(clusters, rates, strict=True)))
        for index, rate in enumerate(rates):
            if met[index]:
                below[index] = rate
            else:
                above[index] = rate
    return tuple(low / count for low, count in zip(below, counts, strict=True))
