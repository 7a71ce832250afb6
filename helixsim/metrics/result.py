"""The result of a run: a summary, and frames to look into."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helixsim.control.control_plane import node_scheduler_name
from helixsim.control.routing.policy import Rejection
from helixsim.metrics.goals import attainments, cost
from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    import pandas as pd

    from helixsim.metrics.gauges import Run
    from helixsim.metrics.output import TableFormat
    from helixsim.metrics.timeline import Timeline
    from helixsim.scenario.resolved import Scenario

SUMMARY_SCHEMA = 1


@dataclass(frozen=True)
class RunResult:
    """What a run has measured.

    Attributes
    ----------
    scenario
        What was run.
    seed
        With which seed.
    summary
        As in ``summary.json``; every key is documented in docs/results.md.
    tables
        Name -> columns: ``requests``, ``nodes``, ``links``, ``timeline`` and, if they were
        recorded, ``iterations``.
    """

    scenario: Scenario
    seed: int
    summary: dict[str, Any]
    tables: dict[str, Columns]

    @classmethod
    def of(
        cls,
        run: Run,
        timeline: Timeline,
        *,
        interrupted: bool = False,
    ) -> RunResult:
        """Collect the result of a run that has ended."""
        recorder = run.recorder
        tables = {
            "requests": recorder.requests,
            "nodes": timeline.nodes,
            "links": timeline.links,
            "timeline": timeline.cluster,
        }
        if recorder.iterations is not None:
            tables["iterations"] = recorder.iterations
        return cls(run.scenario, run.seed, _summary(run, timeline, interrupted), tables)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        return self._frame("requests")

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """One row per node and interval."""
        return self._frame("nodes")

    @cached_property
    def links(self) -> pd.DataFrame:
        """One row per link and interval."""
        return self._frame("links")

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """One row per interval, for the cluster as a whole."""
        return self._frame("timeline")

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """One row per pass of every request, in the order in which they came back.

        Raises
        ------
        KeyError
            If iterations were not recorded.
        """
        if "iterations" not in self.tables:
            raise KeyError("iterations were not recorded: simulate(..., record_iterations=True)")
        return self._frame("iterations")

    def write(
        self, folder: str | Path, *, table_format: TableFormat = "parquet", overwrite: bool = False
    ) -> None:
        """Write all of it into a folder, as ``helixsim run -o`` does.

        Raises
        ------
        OutputError
            If the folder exists and `overwrite` is false, or something cannot be written.
        """
        from helixsim.metrics.output import OutputFolder

        with OutputFolder(folder, overwrite=overwrite) as output:
            output.write(self, table_format)

    def _frame(self, name: str) -> pd.DataFrame:
        return frame_of(self.tables[name])


def frame_of(columns: Columns) -> pd.DataFrame:
    """The same table for pandas; it shares the numbers."""
    import numpy as np
    import pandas as pd

    return pd.DataFrame(
        {
            column: pd.Series(values, dtype="str")
            if isinstance(values, list)
            else np.frombuffer(values, dtype=values.typecode)
            if len(values)
            else np.empty(0, dtype=values.typecode)
            for column, values in columns.as_dict().items()
        }
    )


def _summary(run: Run, timeline: Timeline, interrupted: bool) -> dict[str, Any]:
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
        # A decode leaves the moment the pass before is back: the gap between two tokens is the
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
        "slo": attainments(run.scenario.slos, recorder.requests, start, end),
        "cost": cost(run.scenario, per_s(decodes + prompts), total_tokens_per_s),
        "kv_overflow_samples": timeline.kv_overflows,
        "warnings": _warnings(run, timeline),
    }


def _warnings(run: Run, timeline: Timeline) -> list[str]:
    """What a user should know before trusting the figures."""
    recorder, overflows = run.recorder, timeline.kv_overflows
    warnings = []
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
            f"nothing was completed, and requests were rejected for lack of KV cache: {name} has "
            f"room for {room} tokens on each layer"
        )
    return warnings + _beyond_what_is_known(run)


def _beyond_what_is_known(run: Run) -> list[str]:
    """Where the calibrated physics extrapolates."""
    scenario, known = run.scenario, run.scenario.engine.known
    if scenario.physics != "calibrated" or known is None:
        return []
    new_types = sorted(set(scenario.cluster.machine_mix()) - set(known.machine_types))
    found = []
    if new_types:
        found.append(f"machine types {', '.join(new_types)}")
    if scenario.llm.name not in known.llms:
        found.append(f"LLM {scenario.llm.name}")
    if not found:
        return []
    return [
        f"engine {scenario.engine.name} was fitted without {' and '.join(found)}: it extrapolates"
    ]


def _max_compute(run: Run) -> float:
    """Tokens per second that all layers of all nodes could compute, if nothing else bound."""
    topology, flow = run.topology, run.flow
    return (
        sum(
            rate * node.num_layers
            for rate, node in zip(flow.compute_tokens_per_s, topology.nodes, strict=True)
        )
        / topology.llm.num_layers
    )
