"""Service-level objectives of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    from helixsim.scenario.resolved import Slo


def attainments(
    slos: Sequence[Slo], requests: Columns, start_s: float, end_s: float
) -> dict[str, dict[str, Any]]:
    """Attainment and goodput of each class of objectives.

    Parameters
    ----------
    slos
        The classes of objectives.
    requests
        The table of requests; requests completed within the window count.
    start_s, end_s
        The window, both ends included.

    Returns
    -------
    dict
        Name of the class -> its part of the summary; see docs/results.md.
    """
    if not slos:
        return {}
    table = requests.as_dict()
    rows = [
        (ttft_s, tpot_s, e2e_s, 1 + int(decodes))
        for status, at_s, ttft_s, tpot_s, e2e_s, decodes in zip(
            *(
                table[name]
                for name in ("status", "end_s", "ttft_s", "tpot_s", "e2e_s", "decode_tokens")
            ),
            strict=True,
        )
        if status == "completed" and start_s <= at_s <= end_s
    ]
    measured_s = end_s - start_s
    found = {}
    for slo in slos:
        limits = (slo.ttft_s, slo.tpot_s, slo.e2e_s)
        # NaN, the time per token of an answer of one token, exceeds no limit.
        kept = [
            row[3]
            for row in rows
            if not any(
                limit is not None and value > limit
                for limit, value in zip(limits, row[:3], strict=True)
            )
        ]
        attainment = len(kept) / len(rows) if rows else None
        found[slo.name] = {
            "finished": len(rows),
            "attainment": attainment,
            "met": None if slo.share is None or attainment is None else attainment >= slo.share,
            "goodput_requests_per_s": len(kept) / measured_s if measured_s else 0.0,
            "goodput_output_tokens_per_s": sum(kept) / measured_s if measured_s else 0.0,
        }
    return found
