"""Attainment of service-level objectives: the share of the requests due that kept their limits.

A request is *due* in the measured window if

1. it was completed in the window, or
2. it arrived in the window and was rejected, or failed after its admission, or
3. it is not completed when the window ends, and has missed a limit already: its first token, its
   last token, or its answer at the longest time per token, should have come by then.

The first kind attains the objectives if it is within all limits, the other two do not. Requests
that run at the end of the window and can still keep the limits are not due, nor are requests that
their users cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf, isnan
from typing import TYPE_CHECKING, Any, NamedTuple

from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Slo

_COLUMNS = (
    "status",
    "arrival_s",
    "first_token_s",
    "end_s",
    "output_tokens",
    "decode_tokens",
    "ttft_s",
    "tpot_s",
    "e2e_s",
)


class _Row(NamedTuple):
    """The columns of a request that its objectives need."""

    status: str
    arrival_s: float
    first_token_s: float
    end_s: float
    output_tokens: int
    decode_tokens: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    user_class: str


def attainments(
    slos: Sequence[Slo],
    requests: Columns,
    start_s: float,
    end_s: float,
    classes: Iterable[str] = (),
) -> dict[str, dict[str, Any]]:
    """Attainment and goodput of each SLO.

    Parameters
    ----------
    slos
        The objectives.
    requests
        The table of requests.
    start_s, end_s
        The window, both ends included.
    classes
        Names of the classes of users: an SLO of such a name is of the requests of that class only.

    Returns
    -------
    dict
        Name of the SLO -> its part of the summary; see docs/results.md.
    """
    if not slos:
        return {}
    rows = list(_rows(requests))
    names = set(classes)
    return {
        slo.name: _attainment(
            slo,
            [row for row in rows if row.user_class == slo.name] if slo.name in names else rows,
            start_s,
            end_s,
        )
        for slo in slos
    }


def goodput_requests_per_s(
    slos: Sequence[Slo],
    requests: Columns,
    start_s: float,
    end_s: float,
    classes: Iterable[str] = (),
) -> float:
    """Requests per second that were completed in the window within every SLO that is for them.

    An SLO with the name of a class is for its requests, another one for all. Requests that no SLO
    is for count when they are completed. Parameters as of :func:`attainments`.
    """
    names = set(classes)
    for_all = [slo for slo in slos if slo.name not in names]
    own = {name: [slo for slo in slos if slo.name == name] for name in names}
    kept = sum(
        row.status == "completed"
        and start_s <= row.end_s <= end_s
        and all(_keeps(slo, row) for slo in (*for_all, *own.get(row.user_class, ())))
        for row in _rows(requests)
    )
    return kept / (end_s - start_s) if end_s > start_s else 0.0


def _rows(requests: Columns) -> Iterator[_Row]:
    table = requests.as_dict()
    columns: list[Sequence[Any]] = [table[name] for name in _COLUMNS]
    columns.append(table["class"] if "class" in table else [""] * len(requests))
    return (_Row(*values) for values in zip(*columns, strict=True))


def _attainment(slo: Slo, rows: Sequence[_Row], start_s: float, end_s: float) -> dict[str, Any]:
    finished = [row for row in rows if row.status == "completed" and start_s <= row.end_s <= end_s]
    kept = [1 + row.decode_tokens for row in finished if _keeps(slo, row)]
    refused = sum(
        row.status.startswith(("rejected", "failed")) and start_s <= row.arrival_s <= end_s
        for row in rows
    )
    overdue = sum(_is_overdue(slo, row, end_s) for row in rows)
    due = len(finished) + refused + overdue
    attainment = len(kept) / due if due else None
    measured_s = end_s - start_s
    return {
        "due": due,
        "finished": len(finished),
        "refused": refused,
        "overdue": overdue,
        "attainment": attainment,
        "met": None if slo.share is None or attainment is None else attainment >= slo.share,
        "goodput_requests_per_s": len(kept) / measured_s if measured_s else 0.0,
        "goodput_output_tokens_per_s": sum(kept) / measured_s if measured_s else 0.0,
    }


def _keeps(slo: Slo, row: _Row) -> bool:
    """Whether a completed request is within all limits.

    NaN, the time per token of an answer of one token, exceeds no limit.
    """
    return not (
        row.ttft_s > _limit(slo.ttft_s)
        or row.tpot_s > _limit(slo.tpot_s)
        or row.e2e_s > _limit(slo.e2e_s)
    )


def _is_overdue(slo: Slo, row: _Row, now: float) -> bool:
    """Whether a request that is served or waits at a time has missed a limit by then."""
    runs = row.status in ("in flight", "waiting") or (row.status == "completed" and row.end_s > now)
    if not runs or row.arrival_s > now:
        return False
    has_token = not isnan(row.first_token_s) and row.first_token_s <= now
    waited_s = (row.first_token_s if has_token else now) - row.arrival_s
    # An answer has at most `output_tokens` tokens after the first.
    answering_s = now - row.first_token_s if has_token else 0.0
    return (
        waited_s > _limit(slo.ttft_s)
        or answering_s > _limit(slo.tpot_s) * row.output_tokens
        or now - row.arrival_s > _limit(slo.e2e_s)
    )


def _limit(limit_s: float | None) -> float:
    return inf if limit_s is None else limit_s
