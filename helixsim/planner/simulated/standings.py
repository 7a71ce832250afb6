"""Which candidate is the best: by confidence bounds, not by how often it was run.

Each score comes with a standard deviation: that of a run with another seed, divided by the root of
the number of distinct seeds; more for a run that was stopped; most for an estimate. The best
candidate has the highest lower bound. So one lucky run does not beat three good ones, and three
runs of a poor candidate do not beat one of a good candidate.

Where latencies or SLOs count, only runs of full length beat other runs: estimates do not know which
requests a placement rejects, and can be off by a factor of ten; and the share of missed requests,
which percentiles hang on, cannot be projected from a run that was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from helixsim.planner.objective import Figures, Objective
from helixsim.planner.simulated.candidates import Candidate

_DEVIATIONS = 1.0
"""Standard deviations from a score to its bounds."""
_SEED_SHARE, _SEED_SEEDS = 0.015, 4
"""Standard deviation of scores over seeds, relative to the score, before any candidate has two
seeds; and how many further seeds this guess counts for."""
_STOPPED_SHARE = 0.06
"""The same for the projected score of a run that was stopped."""
_ESTIMATED_SHARE = 0.12
"""The same for a score that the surrogate has estimated, corrected by simulations."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How good a candidate is, as far as that is known.

    Attributes
    ----------
    candidate
        The candidate.
    is_kept
        Whether its mean figures keep all limits.
    score
        Its score.
    error
        Standard deviation of the score.
    is_known
        Whether the score may be compared with the scores of runs.
    """

    candidate: Candidate
    is_kept: bool
    score: float
    error: float
    is_known: bool = True

    @property
    def low(self) -> float:
        """Lower confidence bound of the score."""
        return self.score - _DEVIATIONS * self.error

    @property
    def high(self) -> float:
        """Upper confidence bound of the score."""
        return self.score + _DEVIATIONS * self.error

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """Sort key: the greater, the better; of equal ones, that with fewer nodes."""
        return self.is_known, self.is_kept, self.low, -len(self.candidate.ranges)


def standings(
    candidates: Iterable[Candidate],
    objective: Objective,
    expected: Callable[[Candidate], Figures | None],
) -> list[Standing]:
    """The standings of candidates, best first; equal ones in the order in which they came.

    Parameters
    ----------
    candidates, objective
        The candidates, and what they are compared by.
    expected
        Gives the figures that are expected of a candidate without a run; None if none are.
    """
    pool = list(candidates)
    share = seed_share(pool, objective)
    found = []
    for each in pool:
        if each.runs:
            figures, error = each.figures, share / sqrt(len(each.runs))
        elif each.projected:
            figures, error = dict(each.projected), _STOPPED_SHARE
        elif (estimated := expected(each)) is not None:
            figures, error = dict(estimated), _ESTIMATED_SHARE
        else:
            continue
        kept, score = objective.rank(figures, each.move_cost)
        is_known = bool(each.runs) or objective.is_of_rates
        found.append(Standing(each, kept, score, score * error, is_known))
    return sorted(found, key=lambda standing: standing.rank, reverse=True)


def seed_share(candidates: Iterable[Candidate], objective: Objective) -> float:
    """Standard deviation of scores over seeds, relative to the score, pooled over candidates."""
    return pooled_share(each.run_scores(objective) for each in candidates)


def pooled_share(samples: Iterable[Sequence[float]]) -> float:
    """Standard deviation over seeds relative to the mean, pooled over samples of several means.

    A guess counts for a few seeds, so that two runs which happen to agree do not give zero.

    Parameters
    ----------
    samples
        For each candidate, its figure with each seed.
    """
    squares, count = _SEED_SEEDS * _SEED_SHARE**2, float(_SEED_SEEDS)
    for values in samples:
        mean = sum(values) / len(values) if values else 0.0
        if len(values) > 1 and mean > 0:
            squares += sum((value / mean - 1) ** 2 for value in values)
            count += len(values) - 1
    return sqrt(squares / count)
