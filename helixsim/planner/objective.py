"""The objective of a simulated search: one figure to optimise, others within limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, isnan, nan

from helixsim.errors import InputError
from helixsim.planner.figures import (
    COUNTS,
    DEFAULT_FIGURE,
    GOALS,
    OBJECTIVE_FIGURES,
    RATES,
    STATISTICS,
    checked_figure,
    is_maximised,
    is_share,
    latency_name,
)

Figures = Mapping[str, float]
"""Name of a figure, such as ``decode_latency_s.mean``, -> its value."""

MISSED_SHARE = "missed_share"
"""Share of the requests without an answer in time: rejected, failed, or still without a token.

After the prefix of a class of users or a front end, such as ``classes.chat.``, of its requests.
"""
_ATTAINMENT = "attainment"
UNSERVED_SHARE = "unserved_share"
"""After the prefix of an SLO, such as ``slo.chat.``: the share of requests that wait much too long,
of these and the requests due. An SLO without a limit on the first token does not judge them."""
DURATION_S = "duration_s"
"""Length of a run in seconds: the latency that a missed request counts with."""

_LIMIT = re.compile(r"\s*([\w.-]+)\s*(<=|>=)\s*([-+.\deE]+)\s*")
_PENALTY_EXPONENT = 2.0
"""Exponent of the penalty for a broken limit: above 1, so that breaking one never pays."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit on a figure.

    Attributes
    ----------
    figure
        A figure of a run's summary.
    at_most
        Whether the figure must not exceed the value; otherwise it must not fall below it.
    value
        The limit, in the figure's unit.
    """

    figure: str
    at_most: bool
    value: float

    def kept_share(self, figures: Figures) -> float:
        """1 if the limit is kept, otherwise the ratio of figure and limit that is below 1.

        Of counts, the ratio after 1 is added to both, as the limit may be 0.
        """
        actual = counted(figures, self.figure)
        if isnan(actual) and _is_attainment(self.figure):
            return 1.0  # no request was due, so none missed the SLO
        if not isfinite(actual) or actual < 0:
            return 0.0
        if self.figure in COUNTS and self.at_most:
            return min(1.0, (1 + self.value) / (1 + actual))
        if not self.at_most:
            return min(1.0, actual / self.value)
        return min(1.0, self.value / actual) if actual else 1.0

    def actual(self, figures: Figures) -> str:
        """What the figure is, as text; no request may tell it, as none of a class arrived."""
        value = counted(figures, self.figure)
        return "not measured" if isnan(value) else f"actual value {value:.4g}"

    def __str__(self) -> str:
        """The limit as written on the command line."""
        return f"{self.figure}{'<=' if self.at_most else '>='}{self.value:g}"


@dataclass(frozen=True, slots=True)
class Objective:
    """The figure to optimise, and limits to keep.

    Attributes
    ----------
    figure
        A figure of a run's summary: rates and shares are maximised, others minimised.
    limits
        Limits on figures.
    """

    figure: str = DEFAULT_FIGURE
    limits: tuple[Limit, ...] = ()

    @property
    def is_rate(self) -> bool:
        """Whether the figure is maximised."""
        return is_maximised(self.figure)

    @property
    def is_throughput(self) -> bool:
        """Whether it is the throughput alone, without limits."""
        return self.figures == (DEFAULT_FIGURE,)

    @property
    def is_of_rates(self) -> bool:
        """Whether it depends on the throughput only, which estimates and short runs tell well."""
        return all(figure in RATES for figure in self.figures)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that it depends on."""
        return tuple(dict.fromkeys([self.figure, *(limit.figure for limit in self.limits)]))

    def merit(self, figures: Figures, price: float = 0.0) -> float:
        """The value of the figure or its inverse, so that more is better; 0 if it is missing.

        Parameters
        ----------
        figures
            Figures of a run.
        price
            What makes the figure worse, in its unit; see :func:`.move_cost`.
        """
        actual = counted(figures, self.figure)
        if self.figure in COUNTS and actual >= 0:
            return 1 / (1 + actual + price)
        if not isfinite(actual) or actual <= 0:
            return 0.0
        return max(0.0, actual - price) if self.is_rate else 1 / (actual + price)

    def score(self, figures: Figures, price: float = 0.0) -> float:
        """The merit, reduced smoothly by every limit that is not kept."""
        score = self.merit(figures, price)
        for limit in self.limits:
            score *= limit.kept_share(figures) ** _PENALTY_EXPONENT
        return score

    def kept(self, figures: Figures) -> bool:
        """Whether all limits are kept."""
        return all(limit.kept_share(figures) >= 1 for limit in self.limits)

    def rank(self, figures: Figures, price: float = 0.0) -> tuple[bool, float]:
        """Sort key: figures that keep all limits rank above figures that do not."""
        kept = self.kept(figures)
        return kept, self.merit(figures, price) if kept else self.score(figures, price)


def counted(figures: Figures, name: str) -> float:
    """A figure with missed requests counted, NaN if unknown.

    In a latency, they count as long as the run; in the attainment of an SLO, they are not within
    limits. Without that, the best latency would be that of a cluster that turns most requests away.
    A percentile is interpolated between the known percentiles.
    """
    value = figures.get(name, nan)
    prefix, _, last = name.rpartition(".")
    if last == _ATTAINMENT:
        served = 1 - figures.get(f"{prefix}.{UNSERVED_SHARE}", 0.0)
        return value * served if served else 0.0
    parts = latency_name(name)
    if parts is None:
        return value
    group, family, statistic = parts
    missed, longest_s = figures.get(group + MISSED_SHARE, 0.0), figures.get(DURATION_S, nan)
    if not (missed > 0 and isfinite(longest_s)):
        return value
    if statistic == "mean":
        return (1 - missed) * value + missed * longest_s
    return _percentile(figures, group + family, float(statistic[1:]) / 100, missed, longest_s)


def _percentile(
    figures: Figures, latency: str, share: float, missed: float, longest_s: float
) -> float:
    """A percentile with missed requests, interpolated between the known ones."""
    if share >= 1 - missed:
        return longest_s
    known = [
        (float(each[1:]) / 100, figures.get(f"{latency}.{each}", nan))
        for each in STATISTICS
        if each != "mean"
    ]
    points = [(0.0, 0.0), *known, (1.0, longest_s)]
    wanted = share / (1 - missed)
    for (low, below), (high, above) in pairwise(points):
        if wanted <= high:
            return below + (above - below) * (wanted - low) / (high - low)
    return longest_s


def parse_objective(
    figure: str = DEFAULT_FIGURE,
    limits: Sequence[str] = (),
    known: Sequence[str] = OBJECTIVE_FIGURES,
) -> Objective:
    """Read an objective: a figure, and limits such as ``decode_latency_s.mean<=1.5``.

    Parameters
    ----------
    figure
        One of `known`, or of :data:`.GOALS`.
    limits
        Texts as :func:`parse_limit` reads them.
    known
        Names of the figures that runs have.

    Raises
    ------
    InputError
        If a figure is not known or a limit cannot be read.
    """
    return Objective(
        checked_figure(GOALS.get(figure, figure), "--goal", known, ("cost", "goodput")),
        tuple(parse_limit(text, "--subject-to", known) for text in limits),
    )


def parse_limit(text: str, where: str, known: Sequence[str] = OBJECTIVE_FIGURES) -> Limit:
    """Read a limit, such as ``decode_latency_s.mean<=1.5``.

    Parameters
    ----------
    text
        A figure, ``<=`` or ``>=``, and a number above 0; of counts such as
        ``requests.rejected<=0``, 0 too.
    where
        The option that gives it, for error messages.
    known
        Figures that may have a limit.

    Raises
    ------
    InputError
        If the figure is not known or the limit cannot be read.
    """
    match = _LIMIT.fullmatch(text)
    value = _number(match[3]) if match else nan
    may_be_zero = match is not None and match[1] in COUNTS and match[2] == "<="
    if match is None or not isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        raise InputError(
            f"'{text}' is not a limit; write a figure, <= or >=, and a number above 0, such as "
            "decode_latency_s.mean<=1.5",
            where=where,
        )
    figure = checked_figure(match[1], where, known)
    if is_share(figure) and value > 1:
        raise InputError(
            f"'{text}': a share is at most 1; write {value / 100:g} for {value:g} %", where=where
        )
    return Limit(figure, match[2] == "<=", value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def mean_figures(figures: Sequence[Figures]) -> dict[str, float]:
    """Mean over runs of the figures that all runs have; empty without runs.

    An attainment is the mean over the runs in which any request was due.
    """
    found = {}
    for name in dict.fromkeys(name for each in figures for name in each):
        values = [each[name] for each in figures if name in each]
        if len(values) == len(figures) or _is_attainment(name):
            found[name] = sum(values) / len(values)
    return found


def _is_attainment(name: str) -> bool:
    return name.rpartition(".")[2] == _ATTAINMENT
