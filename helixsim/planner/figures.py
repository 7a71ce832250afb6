"""The figures of a run's summary that may be a goal or have a limit: names, and what is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from helixsim.errors import InputError
from helixsim.metrics.costs import cost, energy

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Scenario, Slo

DEFAULT_FIGURE = "decode_tokens_per_s"
GOODPUT = "goodput_requests_per_s"
"""Requests per second that are completed within every SLO that is for them."""
RATES = (DEFAULT_FIGURE, "output_tokens_per_s", "total_tokens_per_s", "requests_per_s")
LATENCIES = ("prompt_latency_s", "decode_latency_s", "ttft_s", "tpot_s", "itl_s", "e2e_s")
GROUP_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
"""Latencies that are measured for each class of users and each front end, too."""
STATISTICS = ("mean", "p5", "p25", "p50", "p75", "p95", "p99")
OBJECTIVE_FIGURES: tuple[str, ...] = (
    *RATES,
    *(f"{name}.{statistic}" for name in LATENCIES for statistic in STATISTICS),
)
"""Figures that every run has."""

GOALS: Mapping[str, str] = {
    "cost": "output_tokens_per_s",
    "cost.dollars_per_million_output_tokens": "output_tokens_per_s",
    "cost.dollars_per_million_total_tokens": "total_tokens_per_s",
    "goodput": GOODPUT,
}
"""Goals -> the figures that are optimised in their place.

The cluster of a plan is paid for as a whole, idle machines too: the placement with the lowest cost
of a token is the one with the most tokens per second.
"""

OF_SLOS = ("attainment", GOODPUT, "goodput_output_tokens_per_s")
"""Figures of each SLO."""
COUNTS = ("preemptions", "requests.rejected", "requests.failed", "requests.restarted")
"""Figures of which 0 is the best."""
_SHARES = ("attainment", "prefix_cache_hit_rate")
_COMPLETED = "requests.completed"
_MORE_IS_BETTER = frozenset((*RATES, *OF_SLOS, *_SHARES, _COMPLETED))


class LatencyName(NamedTuple):
    """The parts of a name such as ``classes.chat.ttft_s.p95``: ``classes.chat.``, the rest."""

    group: str
    family: str
    statistic: str


def is_maximised(name: str) -> bool:
    """Whether more of a figure is better: of rates, shares and completed requests."""
    return name in _MORE_IS_BETTER or name.rpartition(".")[2] in _MORE_IS_BETTER


@cache
def is_share(name: str) -> bool:
    """Whether a figure is a share, 0 to 1."""
    return name.rpartition(".")[2] in _SHARES


@cache
def latency_name(name: str) -> LatencyName | None:
    """The parts of the name of a latency; None for other figures."""
    parts = name.rsplit(".", 2)
    if len(parts) < 2 or parts[-2] not in LATENCIES or parts[-1] not in STATISTICS:
        return None
    group = f"{parts[0]}." if len(parts) > 2 else ""
    return LatencyName(group, parts[-2], parts[-1])


def figure_names(
    slos: Sequence[Slo] = (), classes: Sequence[str] = (), front_ends: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the figures of all runs with these SLOs, classes of users and several front ends."""
    return (
        *RATES,
        *((GOODPUT,) if slos else ()),
        *(f"slo.{slo.name}.{figure}" for slo in slos for figure in OF_SLOS),
        _COMPLETED,
        *COUNTS,
        *OBJECTIVE_FIGURES[len(RATES) :],
        *_of_groups("classes", {name: _slos_of(name, slos, classes) for name in classes}),
        *_of_groups("front_ends", {name: [slo.name for slo in slos] for name in front_ends}),
    )


def names_of(scenario: Scenario) -> tuple[str, ...]:
    """Names of the figures of a scenario's runs that may be a goal or have a limit."""
    home = scenario.cluster.front_end_names
    parts = {"cost": cost(scenario, 1.0, 1.0), "energy": energy(scenario, 1.0, 1.0)}
    return (
        *figure_names(scenario.slos, scenario.workload.class_names, home if len(home) > 1 else ()),
        "prefix_cache_hit_rate",
        *(
            f"{part}.{name}"
            for part, figures in parts.items()
            for name in figures or ()
            if "_per_million_" in name
        ),
    )


def _slos_of(name: str, slos: Sequence[Slo], classes: Sequence[str]) -> list[str]:
    """Names of the SLOs that are for the requests of a class."""
    return [slo.name for slo in slos if slo.name == name or slo.name not in classes]


def _of_groups(part: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, slos in groups.items():
        for family in GROUP_LATENCIES:
            for statistic in STATISTICS:
                yield f"{part}.{name}.{family}.{statistic}"
        for slo in slos:
            for figure in OF_SLOS:
                yield f"{part}.{name}.slo.{slo}.{figure}"


def checked_figure(
    figure: str,
    where: str,
    known: Sequence[str] = OBJECTIVE_FIGURES,
    words: Sequence[str] = (),
) -> str:
    """A figure, if it is known.

    Parameters
    ----------
    figure, where
        Its name, and the option that gives it.
    known
        Names of all figures.
    words
        What may be written instead, for the message.

    Raises
    ------
    InputError
        If it is not; the message names all of them.
    """
    if figure in known:
        return figure
    if GOODPUT in figure and not any(GOODPUT in name for name in known):
        raise InputError(
            "goodput counts requests within SLOs, and the scenario has none; give it limits, such "
            "as 'slo: {chat: {ttft: 2 s, tpot: 0.2 s}}'",
            where=where,
        )
    plain = [name for name in known if latency_name(name) is None]
    families = [
        family
        for family, _ in groupby(
            name.rpartition(".")[0] for name in known if latency_name(name) is not None
        )
    ]
    raise InputError(
        f"unknown figure '{figure}'; choose one of {', '.join(plain)}, or one of "
        f"{', '.join(families)} with one of the statistics {', '.join(STATISTICS)}, such as "
        "decode_latency_s.mean" + (f"; or {' or '.join(words)}" if words else ""),
        where=where,
    )
