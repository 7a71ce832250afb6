"""Gauges of nodes and links, sampled at regular intervals of simulated time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helixsim.metrics.gauges import kv_used_token_layers
from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    from helixsim.metrics.gauges import MeasuredRun


class Timeline:
    """Samples the gauges of a run; every row covers the time since the previous row.

    Attributes
    ----------
    nodes, links, cluster
        The tables; their columns are documented in docs/results.md.
    kv_overflows
        Samples in which the requests of a node held more than its KV capacity.
    """

    def __init__(self, run: MeasuredRun) -> None:
        self._run = run
        self.nodes = Columns(
            (
                "time_s",
                "node",
                "utilisation",
                "tokens_per_s",
                "batches",
                "running",
                "waiting",
                "kv_used_token_layers",
                "kv_expected_token_layers",
                "kv_capacity_token_layers",
            ),
            "dsddqqqqdq",
        )
        self.links = Columns(
            (
                "time_s",
                "source",
                "target",
                "utilisation",
                "bytes_per_s",
                "requests",
                "backlog_s",
            ),
            "dssddqd",
        )
        self.cluster = Columns(
            (
                "time_s",
                "active_requests",
                "completed",
                "rejected",
                "decode_tokens_per_s",
                "prompt_tokens_per_s",
            ),
            "dqqqdd",
        )
        self.kv_overflows = 0
        self._then = 0.0
        self._node_then = [(0.0, 0, 0)] * len(run.nodes)
        self._link_then = [(0.0, 0.0, 0)] * len(run.links)
        self._cluster_then = (0, 0)

    def sample(self) -> None:
        """Read all gauges; the first reading only marks the start."""
        run = self._run
        now = run.now
        elapsed = now - self._then
        if self._then == 0.0:
            self._then = now  # work in progress already belongs to the first row
        elif elapsed > 0:
            self._sample_nodes(now, elapsed)
            self._sample_links(now, elapsed)
            self._sample_cluster(now, elapsed)
            self._then = now
        run.recorder.compact()

    def finish(self) -> None:
        """Read the gauges once more at the end of the run."""
        self.sample()

    def _sample_nodes(self, now: float, elapsed: float) -> None:
        run = self._run
        used = kv_used_token_layers(run)
        for node, gauges in zip(run.topology.nodes, run.nodes, strict=True):
            reading = (gauges.busy_s(now), gauges.num_tokens, gauges.num_batches)
            then = self._node_then[node.index]
            self._node_then[node.index] = reading
            capacity = node.capacity.kv_token_layers
            self.kv_overflows += used[node.index] > capacity
            expected = run.policy.expected_tokens(node.index)
            self.nodes.add(
                now,
                node.name,
                (reading[0] - then[0]) / elapsed,
                (reading[1] - then[1]) / elapsed,
                reading[2] - then[2],
                gauges.num_running,
                gauges.num_waiting,
                used[node.index],
                float("nan") if expected is None else expected,
                capacity,
            )

    def _sample_links(self, now: float, elapsed: float) -> None:
        run = self._run
        name = run.topology.name
        for link in run.links:
            placed = link.placed
            reading = (link.busy_s(now), link.num_bytes, link.num_requests)
            then = self._link_then[placed.index]
            self._link_then[placed.index] = reading
            self.links.add(
                now,
                name(placed.source),
                name(placed.target),
                (reading[0] - then[0]) / elapsed,
                (reading[1] - then[1]) / elapsed,
                reading[2] - then[2],
                link.backlog_s(now),
            )

    def _sample_cluster(self, now: float, elapsed: float) -> None:
        recorder = self._run.recorder
        reading = (recorder.num_decode_tokens, recorder.num_prompt_tokens)
        then, self._cluster_then = self._cluster_then, reading
        self.cluster.add(
            now,
            len(self._run.coordinator.active),
            recorder.num_completed,
            recorder.num_rejected,
            (reading[0] - then[0]) / elapsed,
            (reading[1] - then[1]) / elapsed,
        )
