"""What binds a placement, in words and figures, from one run of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from helixsim.placement.cut_text import count_text, names_text
from helixsim.placement.topology import Topology
from helixsim.studies.explain_measures import SELDOM, Measures, NodeUse, StageUse
from helixsim.studies.explain_result import Finding
from helixsim.studies.explain_routes import RouteTimes

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult
    from helixsim.scenario.resolved import Scenario

SATURATED = 0.9
"""A node or link that works above this share of the time has no room left."""
_BUSY, _SENDING = 0.5, 0.3
"""Nodes, links: reported from this utilisation."""
_NOTICED = 0.05
"""Sending prompts, waiting of decodes: reported from this share of their latency."""
_CAUSED = 0.85
"""Offline, requests are sent until a KV cache is full. Where a node or link is saturated, that is
a consequence: it ranks below."""
_MOSTLY = 0.5
"""Stages that are full for this share of the time are marked beside the fullest one."""
_WORTH = 0.02
"""Shares of latencies or requests below this one are not worth a sentence."""
_NAMED = 3
"""Links that a sentence names."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What findings are drawn from: a run, its topology, and what it used."""

    scenario: Scenario
    topology: Topology
    result: RunResult
    measures: Measures
    times: RouteTimes


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings, the worst first."""
    found = [
        *_kv(evidence),
        *_compute(evidence),
        *_links(evidence),
        *_interfaces(evidence),
        *_blocking(evidence),
        *_latency(evidence),
        *_transfers(evidence),
        *_idle(evidence),
        *_rejected(evidence),
        *_preempted(evidence),
    ]
    return tuple(sorted(found, key=lambda each: -each.severity))


def binding_stage(measures: Measures) -> StageUse:
    """The stage that binds most: by its KV caches, or by its compute."""
    busiest = max(measures.stages, key=lambda stage: stage.load)
    fullest = max(measures.stages, key=lambda stage: (stage.kv_full_share, stage.utilisation))
    return fullest if busiest.load < SATURATED and _is_full(fullest) else busiest


def _is_full(stage: StageUse) -> bool:
    return stage.kv_full_share > stage.load


# -- kinds of findings -----------------------------------------------------------------------


def _kv(evidence: Evidence) -> Iterator[Finding]:
    measures, is_offline = evidence.measures, evidence.scenario.workload.mode == "offline"
    full = [stage for stage in measures.stages if stage.kv_full_share > _WORTH]
    if not full:
        return
    worst = max(full, key=lambda stage: stage.kv_full_share)
    members = [measures.node(name) for name in worst.nodes]
    mean = sum(node.kv_share for node in members) / len(members)
    text = (
        f"KV cache: the caches of {worst.layers} ({names_text(worst.nodes)}) are full "
        f"{worst.kv_full_share:.0%} of the time, with {mean:.0%} in use on average; requests may "
        f"use {measures.kv_limit:.0%}."
    )
    waits = evidence.times.admission_wait_s
    figures = {"full_share": worst.kv_full_share, "mean_use": mean, "limit": measures.kv_limit}
    severity = worst.kv_full_share
    if is_offline:
        text += " Offline, no further request is sent then."
        if _most_busy(measures) >= SATURATED:
            severity *= _CAUSED
            text += " They fill up because another resource is saturated."
    else:
        waiting = evidence.times.waiting
        text += f" {waiting:,.1f} requests wait for admission on average, {waits:.2f} s each."
        figures |= {"waiting": waiting, "wait_s": waits}
    if len(full) > 1:
        others = ", ".join(
            f"{stage.title} {stage.kv_full_share:.0%}" for stage in full if stage is not worst
        )
        text += f" Full too: {others}."
    mostly = [stage for stage in full if stage is worst or stage.kv_full_share >= _MOSTLY]
    nodes = tuple(name for stage in mostly for name in stage.nodes)
    yield Finding(kind="kv", severity=severity, text=text, figures=figures, nodes=nodes)


def _most_busy(measures: Measures) -> float:
    """The highest load of a stage, or utilisation of a link or a network interface."""
    return max(
        *(stage.load for stage in measures.stages),
        *(link.utilisation for link in measures.links),
        *(each.utilisation for each in measures.interfaces),
    )


def _compute(evidence: Evidence) -> Iterator[Finding]:
    measures = evidence.measures
    busy = sorted(measures.stages, key=lambda stage: -stage.load)
    worst = busy[0]
    if worst.utilisation < _BUSY:
        return
    members = [measures.node(name) for name in worst.nodes]
    waiting = sum(node.waiting for node in members)
    verb = "compute" if len(members) > 1 else "computes"
    text = (
        f"Compute: {_each(members)} at {worst.layers} {verb}"
        f" {worst.utilisation:.0%} of the time; {waiting:,.1f} requests wait there on average. "
        f"{worst.growing_share:.0%} of the work grows with the tokens; the rest, such as reading "
        "weights, is shared in larger batches."
    )
    if len(busy) > 1:
        rest = sorted(busy[1:], key=lambda stage: -stage.utilisation)
        others = ", ".join(f"{each.title} {each.utilisation:.0%}" for each in rest[:5])
        more = f", and {len(busy) - 6} more stages less" if len(busy) > 6 else ""
        text += f" Other stages: {others}{more}."
    figures = {
        "utilisation": worst.utilisation,
        "growing_share": worst.growing_share,
        "waiting": waiting,
    }
    yield Finding(
        kind="compute",
        severity=worst.load,
        text=text,
        figures=figures,
        nodes=worst.nodes,
    )


def _each(nodes: list[NodeUse]) -> str:
    """Names of nodes, with the utilisation of each where it differs."""
    if len(nodes) == 1 or len({round(node.utilisation, 2) for node in nodes}) == 1:
        return names_text([node.name for node in nodes])
    return names_text([f"{node.name} {node.utilisation:.0%}" for node in nodes])


def _links(evidence: Evidence) -> Iterator[Finding]:
    busy = [link for link in evidence.measures.links if link.utilisation >= _SENDING]
    if not busy:
        return
    worst = busy[0]
    named = names_text(
        [f"{link.source} → {link.target} {link.utilisation:.0%}" for link in busy[:_NAMED]]
    )
    text = (
        f"Links: {count_text(len(busy), 'link')} send more than {_SENDING:.0%} of the time "
        f"({named}); what is queued at {worst.source} → {worst.target} takes "
        f"{worst.backlog_s:.2f} s to send on average."
    )
    figures = {"utilisation": worst.utilisation, "backlog_s": worst.backlog_s}
    ends = tuple(name for name in (worst.source, worst.target) if _is_node(evidence, name))
    yield Finding(kind="link", severity=worst.utilisation, text=text, figures=figures, nodes=ends)


def _is_node(evidence: Evidence, name: str) -> bool:
    return any(node.name == name for node in evidence.topology.nodes)


def _interfaces(evidence: Evidence) -> Iterator[Finding]:
    worst = evidence.measures.interfaces[0]
    if worst.utilisation < _SENDING:
        return
    text = (
        f"Network interfaces: {worst.machine} uses {worst.utilisation:.0%} of its {worst.direction}"
        " bandwidth."
    )
    nodes = (worst.machine,) if _is_node(evidence, worst.machine) else ()
    yield Finding(
        kind="interface",
        severity=worst.utilisation,
        text=text,
        figures={"utilisation": worst.utilisation},
        nodes=nodes,
    )


def _blocking(evidence: Evidence) -> Iterator[Finding]:
    times = evidence.times
    if not times.decode_s or not isfinite(times.decode_s):
        return
    own_s = min(times.own_decode_s, times.decode_s)
    waits = 1 - own_s / times.decode_s
    if waits < _NOTICED:
        return
    text = (
        f"Head-of-line blocking: a decode takes {times.decode_s:.3f} s, of which its own batches "
        f"and links need {own_s:.3f} s. For the rest ({waits:.0%}) it waits, behind prompts and "
        f"other batches; prompts are {times.prompt_work_share:.0%} of the nodes' work, and one in "
        f"100 has {times.long_prompt_tokens:,} tokens or more."
    )
    yield Finding(
        kind="blocking",
        severity=waits,
        text=text,
        figures={
            "decode_s": times.decode_s,
            "own_decode_s": own_s,
            "prompt_work_share": times.prompt_work_share,
        },
    )


def _latency(evidence: Evidence) -> Iterator[Finding]:
    times = evidence.times
    if not times.decode_s or times.crossing_s <= 0:
        return
    share = min(1.0, times.decode_crossing_s / times.decode_s)
    first = min(1.0, times.crossing_s / times.ttft_s) if times.ttft_s else 0.0
    if max(share, first) < _WORTH:
        return
    regions = {node.region for node in evidence.measures.nodes}
    where = "between regions" if len(regions) > 1 else "of far links"
    text = (
        f"Latency {where}: the way of a prompt and of its first token has {times.crossings:.1f} "
        f"such links on average, {times.crossing_s * 1e3:,.0f} ms, {first:.0%} of the time to "
        f"first token; a decode spends {times.decode_crossing_s * 1e3:,.0f} ms on them, "
        f"{share:.0%}."
    )
    yield Finding(
        kind="latency",
        severity=max(share, first),
        text=text,
        figures={
            "crossing_s": times.crossing_s,
            "decode_crossing_s": times.decode_crossing_s,
            "crossings": times.crossings,
        },
    )


def _transfers(evidence: Evidence) -> Iterator[Finding]:
    times = evidence.times
    if not times.ttft_s:
        return
    share = min(1.0, times.prompt_transfer_s / times.ttft_s)
    if share < _NOTICED:
        return
    text = (
        f"Prompts on links: sending the activations of a mean prompt takes "
        f"{times.prompt_transfer_s:.2f} s on its route, {share:.0%} of the time to first token."
    )
    yield Finding(
        kind="transfer",
        severity=share,
        text=text,
        figures={"prompt_transfer_s": times.prompt_transfer_s},
    )


def _idle(evidence: Evidence) -> Iterator[Finding]:
    nodes = evidence.measures.nodes
    empty = [node.name for node in nodes if not node.is_placed]
    seldom = [node.name for node in nodes if node.is_placed and node.is_idle]
    if not empty and not seldom:
        return
    parts = []
    if empty:
        parts.append(f"without layers: {names_text(empty)}")
    if seldom:
        parts.append(f"computing less than {SELDOM:.0%} of the time: {names_text(seldom)}")
    share = (len(empty) + len(seldom)) / len(nodes)
    yield Finding(
        kind="idle",
        severity=share,
        text=f"Idle: {'; '.join(parts)}.",
        figures={"empty": float(len(empty)), "seldom": float(len(seldom))},
        nodes=(*empty, *seldom),
    )


def _rejected(evidence: Evidence) -> Iterator[Finding]:
    summary = evidence.result.summary
    counts = summary["requests"]
    lost = counts["rejected"] + counts["failed"]
    if not lost:
        return
    reasons = ", ".join(
        f"{count:,} for {why}" for why, count in summary["rejected_for"].items() if count
    )
    text = f"Rejected: {counts['rejected']:,} of {counts['arrived']:,} requests"
    text += f" ({reasons})" if reasons else ""
    if counts["failed"]:
        text += f"; {counts['failed']:,} failed"
    share = min(1.0, lost / max(1, counts["arrived"]))
    yield Finding(
        kind="rejected", severity=share, text=f"{text}.", figures={"rejected": float(lost)}
    )


def _preempted(evidence: Evidence) -> Iterator[Finding]:
    number, arrived = evidence.result.summary["preemptions"], evidence.times.arrived
    if not number:
        return
    text = (
        f"Preemptions: nodes took the KV blocks of requests back {number:,} times, of {arrived:,} "
        "requests; each computes its context again."
    )
    share = min(1.0, number / max(1, arrived))
    yield Finding(
        kind="preempted", severity=share, text=text, figures={"preemptions": float(number)}
    )
