"""Reasons to doubt the figures of a run, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from helixsim.control.routing.policy import Rejection
from helixsim.metrics.cluster_warnings import idle_machines, missing_figures
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.sources.source import FiguresKind
from helixsim.profiles.sources.trust import error_statement
from helixsim.scenario.workload_warnings import workload_warnings

if TYPE_CHECKING:
    from helixsim.metrics.gauges import MeasuredRun
    from helixsim.metrics.timeline import Timeline
    from helixsim.physics.engine import KnownRange


def figures_of_types(nodes: Sequence[PlacedNode]) -> dict[str, str | None]:
    """Machine type -> kind of figures that its times are; None where that is not known."""
    return {node.machine_type: node.profile.figures for node in nodes}


def run_warnings(run: MeasuredRun, timeline: Timeline) -> list[str]:
    """Reasons to doubt the figures, as sentences."""
    recorder, overflows = run.recorder, timeline.kv_overflows
    warnings = list(run.scenario.workload.warnings)
    if overflows:
        warnings.append(
            f"in {overflows} samples a node's requests held more than its KV cache; the paper's "
            "physics lets that pass, a real node would not"
        )
    if not recorder.num_completed and recorder.rejected_for[Rejection.KV]:
        mark = run.scenario.scheduler.kv.high_water_mark
        room, name = min(
            (int(mark * node.capacity.kv_token_layers / node.num_layers), node.name)
            for node in run.topology.nodes
        )
        warnings.append(
            "no request was completed, and requests were rejected for lack of KV cache: "
            f"{name} has room for {room} tokens on each layer"
        )
    return [
        *warnings,
        *workload_warnings(run.scenario),
        *_extrapolations(run),
        *_kinds_of_figures(run.topology.nodes),
        *idle_machines(run),
        *missing_figures(run),
    ]


def _extrapolations(run: MeasuredRun) -> list[str]:
    """Machine types and LLMs for which the calibrated physics extrapolates, as sentences."""
    scenario, engine = run.scenario, run.scenario.engine
    if scenario.physics != "calibrated":
        return []
    known = engine.known
    if known is not None:
        return _outside(run, known)
    if engine.scheduler != "vllm":
        return []
    curves = sorted({n.machine_type for n in run.topology.nodes if n.profile.operators is None})
    if not curves:
        return []
    return [
        f"engine {engine.name}: step times of {', '.join(curves)} come from prefill and decode "
        "curves, in which context costs nothing; on two recorded vLLM runs mean latencies were 3 "
        "to 8 % too short so, and within 3 % with operator tables"
    ]


def _outside(run: MeasuredRun, known: KnownRange) -> list[str]:
    scenario = run.scenario
    new_types = sorted(set(scenario.cluster.machine_mix()) - set(known.machine_types))
    found = []
    if new_types:
        found.append(f"machine types {', '.join(new_types)}")
    if scenario.llm.name not in known.llms:
        found.append(f"LLM {scenario.llm.name}")
    if not found:
        return []
    text = f"engine {scenario.engine.name} was fitted without {' and '.join(found)}"
    if scenario.engine.scheduler == "prototype" and set(new_types) - scenario.engine.gpus.keys():
        return [
            f"{text}: NOT MADE FOR THEM; on two recorded vLLM runs on other machine types, its "
            "times per token were 30 to 80 % too long, and times to the first token wrong by a "
            "factor of two; use engine: vllm"
        ]
    return [f"{text}: it extrapolates"]


def _kinds_of_figures(nodes: Sequence[PlacedNode]) -> Iterator[str]:
    """What the times of each machine type are, and how far off such times were."""
    types: dict[FiguresKind, dict[str, str]] = {}
    for node in nodes:
        if node.profile.figures is not None:
            types.setdefault(node.profile.figures, {})[node.machine_type] = node.profile.note
    for kind, notes in types.items():
        why = "; ".join(dict.fromkeys(filter(None, notes.values())))
        text = f"step times of {', '.join(notes)} are {error_statement(kind)}"
        yield f"{text} ({why})" if why else text
