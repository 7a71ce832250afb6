"""How far off each kind of figures was where it could be checked.

Tables and measured kernels were checked on recorded runs of vLLM 0.19, each request of which was
simulated at its recorded arrival; ``tests/tools/replay_sources.py`` measures it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from helixsim.profiles.sources.source import FiguresKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayErrors:
    """Errors of a simulated run against the recorded one.

    Attributes
    ----------
    kind
        Kind of figures.
    run
        The recorded run.
    ttft, tpot, e2e
        Relative errors of the means.
    all_reduce_known
        Whether the time of an all-reduce was of the recorded machine itself.
    """

    kind: FiguresKind
    run: str
    ttft: float
    tpot: float
    e2e: float
    all_reduce_known: bool = True


_QWEN_RUN = "Qwen3-32B on two RTX PRO 6000"
_LLAMA_RUN = "Llama-3.1-8B on an RTX 4090"

REPLAYS = (
    ReplayErrors(kind="roofline", run=_LLAMA_RUN, ttft=0.127, tpot=0.086, e2e=0.117),
    ReplayErrors(kind="roofline", run=_QWEN_RUN, ttft=-0.108, tpot=-0.089, e2e=-0.097),
    ReplayErrors(
        kind="roofline",
        run=_QWEN_RUN,
        ttft=-0.350,
        tpot=-0.265,
        e2e=-0.300,
        all_reduce_known=False,
    ),
    ReplayErrors(kind="tables", run=_LLAMA_RUN, ttft=0.027, tpot=0.008, e2e=0.023),
    ReplayErrors(kind="tables", run=_QWEN_RUN, ttft=-0.012, tpot=0.008, e2e=-0.0001),
    ReplayErrors(kind="measured", run=_QWEN_RUN, ttft=-0.044, tpot=-0.039, e2e=-0.041),
    ReplayErrors(
        kind="measured",
        run=_QWEN_RUN,
        ttft=-0.315,
        tpot=-0.235,
        e2e=-0.268,
        all_reduce_known=False,
    ),
)
"""What was measured. The all-reduces of the second machine, 62 us, were fitted with `tables`."""

_TITLES: Mapping[FiguresKind, str] = {
    "measured": "kernels that others measured",
    "tables": "operator tables of the pair itself",
    "roofline": "a roofline reckoned from the data sheet",
}


def error_statement(kind: FiguresKind) -> str:
    """What figures of a kind are, and how far off they were where that could be checked."""
    if kind == "roofline":
        from helixsim.profiles.roofline.constants import shipped_constants

        return f"{_TITLES[kind]}: {shipped_constants().accuracy}"
    known = [replay for replay in REPLAYS if replay.kind == kind]
    parts = [f"mean latencies within {_most(r for r in known if r.all_reduce_known)}"]
    unknown = [replay for replay in known if not replay.all_reduce_known]
    if unknown:
        parts.append(
            f"{_most(unknown)} where all-reduces of the machine took longer than the measured ones"
        )
    return f"{_TITLES[kind]}: on recorded runs of vLLM, {', and '.join(parts)}"


def _most(replays: Iterable[ReplayErrors]) -> str:
    """The largest error of a mean, as a percentage."""
    errors = [abs(error) for each in replays for error in (each.ttft, each.tpot, each.e2e)]
    return f"{100 * max(errors):.0f} %"
