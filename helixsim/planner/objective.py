"""What a user wants of a placement: one figure at its best, others within limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from helixsim.errors import InputError

Figures = Mapping[str, float]
"""Name of a figure, such as ``decode_latency_s.mean``, -> its value."""

DEFAULT_GOAL = "decode_tokens_per_s"

_RATES = (
    "decode_tokens_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "requests_per_s",
)
_LATENCIES = ("prompt_latency_s", "decode_latency_s", "ttft_s", "tpot_s", "itl_s", "e2e_s")
_STATISTICS = ("mean", "p5", "p25", "p50", "p75", "p95", "p99")
GOALS: tuple[str, ...] = (
    *_RATES,
    *(f"{name}.{statistic}" for name in _LATENCIES for statistic in _STATISTICS),
)
"""The figures of a run's summary that may be a goal or have a limit."""

_LIMIT = re.compile(r"\s*([\w.-]+)\s*(<=|>=)\s*([-+.\deE]+)\s*")
_SLOPE = 2.0
"""How strongly a search is drawn back within its limits."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure that must not be above a value, or not below it."""

    figure: str
    at_most: bool
    value: float

    def kept_share(self, figures: Figures) -> float:
        """1 if it is kept, otherwise how near the figure comes to the limit, 0 to 1."""
        actual = figures.get(self.figure, nan)
        if not isfinite(actual) or actual < 0:
            return 0.0
        if not self.at_most:
            return min(1.0, actual / self.value)
        return min(1.0, self.value / actual) if actual else 1.0

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.figure}{'<=' if self.at_most else '>='}{self.value:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What to aim at.

    Attributes
    ----------
    figure
        One of :data:`GOALS`: rates are to be high, latencies low.
    limits
        What must be kept.
    """

    figure: str = DEFAULT_GOAL
    limits: tuple[Limit, ...] = ()

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.figure in _RATES

    def merit(self, figures: Figures) -> float:
        """How good figures are, limits aside; more is better, 0 is nothing at all."""
        actual = figures.get(self.figure, nan)
        if not isfinite(actual) or actual <= 0:
            return 0.0
        return actual if self.is_rate else 1 / actual

    def score(self, figures: Figures) -> float:
        """The merit, reduced smoothly where limits are not kept."""
        score = self.merit(figures)
        for limit in self.limits:
            score *= limit.kept_share(figures) ** _SLOPE
        return score

    def kept(self, figures: Figures) -> bool:
        """Whether all limits are kept."""
        return all(limit.kept_share(figures) >= 1 for limit in self.limits)

    def rank(self, figures: Figures) -> tuple[bool, float]:
        """For choosing: whatever keeps the limits goes before what does not."""
        kept = self.kept(figures)
        return kept, self.merit(figures) if kept else self.score(figures)


def parse_goal(figure: str = DEFAULT_GOAL, limits: Sequence[str] = ()) -> Goal:
    """Read a goal and its limits, such as ``decode_latency_s.mean<=1.5``.

    Raises
    ------
    InputError
        If a figure is not known or a limit cannot be read.
    """
    return Goal(
        _known(figure, "--goal", GOALS),
        tuple(parse_limit(text, "--subject-to") for text in limits),
    )


def _known(figure: str, where: str, known: Sequence[str]) -> str:
    if figure not in known:
        more = [name for name in known if name not in GOALS]
        raise InputError(
            f"no figure '{figure}' that can be aimed at; there are {', '.join(_RATES)}, and of "
            f"{', '.join(_LATENCIES)} the {', '.join(_STATISTICS)}, such as decode_latency_s.mean"
            + (f"; and {', '.join(more)}" if more else ""),
            where=where,
        )
    return figure


def parse_limit(text: str, where: str, known: Sequence[str] = GOALS) -> Limit:
    """Read a limit, such as ``decode_latency_s.mean<=1.5``.

    Parameters
    ----------
    text
        A figure, ``<=`` or ``>=``, and a number above 0.
    where
        The option that gives it, for messages.
    known
        The figures that may have a limit.

    Raises
    ------
    InputError
        If the figure is not known or the limit cannot be read.
    """
    match = _LIMIT.fullmatch(text)
    value = _number(match[3]) if match else nan
    if match is None or not isfinite(value) or value <= 0:
        raise InputError(
            f"'{text}' is no limit; write a figure, <= or >=, and a number above 0, such as "
            "decode_latency_s.mean<=1.5",
            where=where,
        )
    return Limit(_known(match[1], where, known), match[2] == "<=", value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def mean_figures(figures: Sequence[Figures]) -> dict[str, float]:
    """Mean of several runs, of the figures that all of them have; nothing of no runs."""
    if not figures:
        return {}
    names = [name for name in GOALS if all(name in each for each in figures)]
    return {name: sum(each[name] for each in figures) / len(figures) for name in names}


def estimated_family(figure: str) -> str:
    """Which of the figures that an estimate gives moves with this one."""
    if figure in _RATES:
        return "decode_tokens_per_s"
    head = figure.partition(".")[0]
    if head in ("prompt_latency_s", "ttft_s"):
        return "prompt_latency_s.mean"
    if head == "e2e_s":
        return "e2e_s.mean"
    return "decode_latency_s.mean"
