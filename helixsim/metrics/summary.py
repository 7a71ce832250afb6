"""The summary of a run: how it is built, and its figures by dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helixsim.control.control_plane import node_scheduler_name
from helixsim.control.routing.policy import Rejection
from helixsim.metrics.attainment import attainments, goodput_requests_per_s
from helixsim.metrics.costs import cost, energy
from helixsim.metrics.gauges import has_prefix_cache
from helixsim.metrics.group_figures import class_figures, front_end_figures
from helixsim.metrics.warnings import figures_of_types, run_warnings

if TYPE_CHECKING:
    from helixsim.metrics.gauges import MeasuredRun
    from helixsim.metrics.timeline import Timeline

SUMMARY_SCHEMA = 1
_SETTINGS = ("schema", "seed", "partial")
"""Numbers of a summary that were not measured."""


def figures_of(summary: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, float]:
    """The measured numbers of a summary by dotted names, such as ``ttft_s.p95``.

    Parameters
    ----------
    summary
        Summary of a run. True counts as 1 and false as 0; null (not measured) is left out.
    names
        The figures that are wanted, in this order; all, in the order of the summary, if not given.

    Examples
    --------
    >>> figures_of({"seed": 3, "ttft_s": {"mean": 0.5, "p5": None}, "requests": {"arrived": 2}})
    {'ttft_s.mean': 0.5, 'requests.arrived': 2.0}
    """
    found = dict(_flat(summary, ""))
    return found if names is None else {name: found[name] for name in names if name in found}


def _flat(summary: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in summary.items():
        name = f"{prefix}{key}"
        if name in _SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, bool | int | float):
            yield name, float(value)


def build_summary(
    run: MeasuredRun, timeline: Timeline, *, interrupted: bool = False
) -> dict[str, Any]:
    """The summary of a run up to now; every key is documented in docs/results.md."""
    recorder = run.recorder
    now = float(run.now)
    start = recorder.window_start_s
    end = max(start, min(recorder.window_end_s, now))
    measured_s = end - start
    decodes = len(recorder.decode_latency_s)
    prompts = len(recorder.prompt_latency_s)

    def per_s(amount: float) -> float:
        return amount / measured_s if measured_s else 0.0

    decode_latency = recorder.decode_latency_s.statistics()
    active = len(run.coordinator.active)
    total_tokens_per_s = per_s(decodes + prompts + recorder.window_prompt_tokens)
    return {
        "schema": SUMMARY_SCHEMA,
        "scenario": run.scenario.name,
        "seed": run.seed,
        "physics": run.scenario.physics,
        "policy": run.scenario.scheduler.policy,
        "node_scheduler": node_scheduler_name(run.scenario),
        "partial": interrupted,
        "simulated_s": now,
        "window_start_s": start,
        "window_end_s": end,
        "decode_tokens_per_s": per_s(decodes),
        "output_tokens_per_s": per_s(decodes + prompts),
        "total_tokens_per_s": total_tokens_per_s,
        "requests_per_s": per_s(len(recorder.e2e_s)),
        "max_flow_tokens_per_s": run.flow.tokens_per_s,
        "max_compute_tokens_per_s": _max_compute(run),
        "prompt_latency_s": recorder.prompt_latency_s.statistics(),
        "decode_latency_s": decode_latency,
        "ttft_s": recorder.ttft_s.statistics(),
        "tpot_s": recorder.tpot_s.statistics(),
        # A decode leaves as soon as the previous pass is back: the gap between two tokens is the
        # latency of the pass that makes the second.
        "itl_s": dict(decode_latency),
        "e2e_s": recorder.e2e_s.statistics(),
        "requests": {
            "arrived": recorder.num_arrived,
            "completed": recorder.num_completed,
            "rejected": recorder.num_rejected,
            "failed": recorder.num_failed,
            "cancelled": recorder.num_cancelled,
            "in_flight": active,
            "waiting": len(run.coordinator.waiting),
            "restarted": run.coordinator.num_restarts,
        },
        "rejected_for": {reason.value: recorder.rejected_for[reason] for reason in Rejection},
        **_request_figures(run, start, end),
        "cost": cost(run.scenario, per_s(decodes + prompts), total_tokens_per_s),
        "energy": energy(run.scenario, per_s(decodes + prompts), total_tokens_per_s),
        "prefix_cache_hit_rate": _hit_rate(run),
        "preemptions": recorder.num_preemptions,
        "kv_overflow_samples": timeline.kv_overflows,
        "figures": figures_of_types(run.topology.nodes),
        "warnings": run_warnings(run, timeline),
    }


def _request_figures(run: MeasuredRun, start_s: float, end_s: float) -> dict[str, Any]:
    """Figures from the table of requests: of SLOs, classes of users and several front ends."""
    scenario, recorder, slos = run.scenario, run.recorder, run.scenario.slos
    classes = scenario.workload.class_names
    has_front_ends = "front_end" in recorder.requests.names
    if not (slos or classes or has_front_ends):
        return {"slo": {}}
    rows = recorder.all_requests(run.coordinator.active, run.coordinator.waiting)
    found: dict[str, Any] = {"slo": attainments(slos, rows, start_s, end_s, classes)}
    if slos:
        found["goodput_requests_per_s"] = goodput_requests_per_s(
            slos, rows, start_s, end_s, classes
        )
    if classes:
        found["classes"] = class_figures(scenario, rows, start_s, end_s)
    if has_front_ends:
        found["front_ends"] = front_end_figures(scenario, rows, start_s, end_s)
    return found


def _hit_rate(run: MeasuredRun) -> float | None:
    """Share of the prompts' tokens that a prefix cache held; None without one, or without prompts.

    Of prompts whose prefill has come back.
    """
    recorder = run.recorder
    if not recorder.num_prompt_tokens or not has_prefix_cache(run):
        return None
    return recorder.num_cached_tokens / recorder.num_prompt_tokens


def _max_compute(run: MeasuredRun) -> float:
    """Tokens per second that all nodes could compute if nothing else were a bottleneck."""
    topology, flow = run.topology, run.flow
    return (
        sum(
            rate * node.num_layers
            for rate, node in zip(flow.compute_tokens_per_s, topology.nodes, strict=True)
        )
        / topology.llm.num_layers
    )
