"""Text of the summary and of the current state of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helixsim.control.routing.policy import Rejection
from helixsim.metrics.gauges import kv_used_token_layers
from helixsim.metrics.sample import PERCENTILES

if TYPE_CHECKING:
    from helixsim.metrics.gauges import MeasuredRun

_LATENCIES = (
    ("prompt_latency_s", "prompt latency"),
    ("decode_latency_s", "decode latency"),
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("e2e_s", "end to end"),
)
_WHY = {
    Rejection.FLOW: "no flow leads on",
    Rejection.LENGTH: "longer than a batch or a KV cache allows",
    Rejection.KV: "KV caches expected to be full",
    Rejection.LATE: "first token later than the SLO allows",
    Rejection.NODES: "no route without the nodes that are down",
}
_SELDOM = ("failed", "cancelled", "waiting", "restarted")


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary of a run on one screen."""
    requests = summary["requests"]
    start, end = summary["window_start_s"], summary["window_end_s"]
    lines = [
        f"{summary['scenario']} ({summary['policy']}, {summary['physics']} physics, "
        f"seed {summary['seed']}), measured from {start:g} s to {end:g} s",
        "",
        f"decode throughput  {summary['decode_tokens_per_s']:10.1f} tokens/s",
        f"total throughput   {summary['total_tokens_per_s']:10.1f} tokens/s, prompts included",
        f"  max flow         {summary['max_flow_tokens_per_s']:10.1f} tokens/s, at typical batches",
        f"  max compute      {summary['max_compute_tokens_per_s']:10.1f} tokens/s, estimated",
        "",
        " " * 24 + "".join(f"{name:>9}" for name in ("mean", *(f"p{p}" for p in PERCENTILES))),
    ]
    lines += [f"{title:<22} s" + _figures(summary[key]) for key, title in _LATENCIES]
    lines += [
        "",
        f"requests: {requests['arrived']} arrived, {requests['completed']} completed, "
        f"{requests['in_flight']} in flight, {requests['rejected']} rejected"
        + _reasons(summary["rejected_for"])
        + "".join(f", {requests[key]} {key}" for key in _SELDOM if requests[key]),
    ]
    lines += _kv_lines(summary)
    lines += _slo_lines(summary["slo"])
    lines += _goodput_lines(summary)
    lines += _group_lines("class", summary.get("classes", {}))
    lines += _group_lines("front end", summary.get("front_ends", {}))
    lines += _cost_lines(summary)
    lines += [f"warning: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines)


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The main figures of a summary: title and text."""
    rows = [
        (title, f"{summary[key]:,.1f} tokens/s")
        for key, title in (
            ("decode_tokens_per_s", "decode throughput"),
            ("total_tokens_per_s", "total throughput, prompts included"),
            ("max_flow_tokens_per_s", "max flow, at typical batches"),
        )
    ]
    for key, title in _LATENCIES:
        found = summary[key]
        if found["mean"] is not None:
            text = f"mean {found['mean']:.3f} s, p50 {found['p50']:.3f} s, p95 {found['p95']:.3f} s"
            rows.append((title, text))
    counts = [f"{count} {name}" for name, count in summary["requests"].items() if count]
    rows.append(("requests", ", ".join(counts).replace("_", " ") or "none"))
    rows += [("warning", warning) for warning in summary["warnings"]]
    return rows


def _kv_lines(summary: Mapping[str, Any]) -> list[str]:
    """What became of KV blocks, if anything did; results of earlier versions do not tell it."""
    facts = []
    if hit_rate := summary.get("prefix_cache_hit_rate"):
        facts.append(f"{hit_rate:.1%} of prompt tokens found in prefix caches")
    if count := summary.get("preemptions"):
        facts.append(f"{count} preemption{'s' * (count > 1)}")
    return [f"KV caches: {', '.join(facts)}"] if facts else []


def _goodput_lines(summary: Mapping[str, Any]) -> list[str]:
    """The goodput over several SLOs, if any request was due; earlier results do not tell it."""
    slos, goodput = summary["slo"].values(), summary.get("goodput_requests_per_s")
    if goodput is None or len(slos) < 2 or not any(_num_due(slo) for slo in slos):
        return []
    return [f"goodput: {goodput:.3f} requests/s within every SLO that is for them"]


def _slo_lines(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, found in classes.items():
        attained = found["attainment"]
        verdict = {True: ", met", False: ", missed", None: ""}[found["met"]]
        lines.append(
            f"SLO {name}: "
            + (
                "no request was due"
                if attained is None
                else f"{attained:.1%} of {_num_due(found)} requests due within limits"
                + _missed_text(found)
            )
            + f"{verdict}; goodput {found['goodput_requests_per_s']:.3f} requests/s, "
            f"{found['goodput_output_tokens_per_s']:.1f} output tokens/s"
        )
    return lines


def _cost_lines(summary: Mapping[str, Any]) -> list[str]:
    """Cost and energy of the cluster; results of earlier versions have no energy."""
    cost, energy = summary["cost"], summary.get("energy")
    lines = []
    if cost is not None:
        usual = " at usual prices" if cost.get("prices") == "usual" else ""
        head = f"cost: {cost['dollars_per_hour']:.2f} $/h{usual}"
        lines.append(head + _per_million(cost, "dollars", "$"))
    if energy is not None:
        head = f"energy: {energy['kilowatts']:.2f} kW at the boards' limits"
        lines.append(head + _per_million(energy, "kwh", "kWh"))
    return lines


def _per_million(figures: Mapping[str, float | None], key: str, unit: str) -> str:
    text = ""
    for tokens, what in (("output", "output tokens"), ("total", "tokens, prompts included")):
        value = figures[f"{key}_per_million_{tokens}_tokens"]
        text += "" if value is None else f"; {value:.2f} {unit} per million {what}"
    return text


def _group_lines(title: str, groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Requests, latencies and attainment of each class of users, or of each front end."""
    lines = []
    for name, found in groups.items():
        requests = found["requests"]
        parts = [
            f"{requests['arrived']} arrived, {requests['completed']} completed, "
            f"{requests['rejected']} rejected"
        ]
        for key, what in (("ttft_s", "first token"), ("tpot_s", "per output token")):
            if found[key]["mean"] is not None:
                p50, p95 = found[key]["p50"], found[key]["p95"]
                parts.append(f"{what}: median {p50:.3f} s, p95 {p95:.3f} s")
        parts += [
            f"SLO {slo} {kept['attainment']:.1%}"
            for slo, kept in found["slo"].items()
            if kept["attainment"] is not None
        ]
        lines.append(f"{title} {name}: {'; '.join(parts)}")
    return lines


def _num_due(found: Mapping[str, Any]) -> int:
    """Requests that are judged; in results of earlier versions, the finished ones alone."""
    return int(found.get("due", found["finished"]))


def _missed_text(found: Mapping[str, Any]) -> str:
    missed = [f"{found[key]} {key}" for key in ("refused", "overdue") if found.get(key)]
    return f" ({', '.join(missed)})" if missed else ""


def _figures(statistics: Mapping[str, float | None]) -> str:
    return "".join(
        f"{'-' if value is None else format(value, '.3f'):>9}" for value in statistics.values()
    )


def _reasons(rejected_for: Mapping[str, int]) -> str:
    reasons = [
        f"{count} {_WHY[Rejection(reason)]}" for reason, count in rejected_for.items() if count
    ]
    return f" ({', '.join(reasons)})" if reasons else ""


def status_text(run: MeasuredRun) -> str:
    """The state of a run: requests, rejections, and the KV cache of every node."""
    recorder, policy = run.recorder, run.policy
    nodes = run.topology.nodes
    now = run.now
    used = kv_used_token_layers(run)
    share = policy.bottleneck_share()
    rejected = {reason.value: count for reason, count in recorder.rejected_for.items()}
    lines = [
        f"at {now - run.start_s:,.1f} s: {len(run.coordinator.active)} requests "
        f"active, {recorder.num_completed} finished, {recorder.num_rejected} rejected"
        + _reasons(rejected)
        + ("" if share is None else f"; fullest layer expected at {share:.1%}"),
        f"  {'node':<20} {'layers':>9} {'KV used':>8} {'expected':>9} {'of token-layers':>16}",
    ]
    for node in nodes:
        capacity = node.capacity.kv_token_layers
        expected = policy.expected_tokens(node.index)
        lines.append(
            f"  {node.name:<20} {f'{node.start_layer}-{node.end_layer}':>9} "
            f"{used[node.index] / capacity:>8.1%} "
            f"{'-' if expected is None else format(expected / capacity, '.1%'):>9} "
            f"{capacity:>16,}"
        )
    return "\n".join(lines)
