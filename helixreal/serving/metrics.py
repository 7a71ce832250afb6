"""``/metrics``: metrics in Prometheus' text format, with vLLM's names."""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from helixreal.serving.frontend import Frontend

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which processes share their histograms."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _Gauges(Collector):
    """Reads the load of the cluster for each scrape."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def collect(self) -> Iterator[Metric]:
        load, name = self._frontend.load(), self._frontend.model_name
        for key, text, value in (
            ("num_requests_running", "Active requests.", load.running),
            ("num_requests_waiting", "Requests that wait for KV capacity.", load.waiting),
            (
                "kv_cache_usage_perc",
                "Expected use of the fullest layer's KV cache, 0 to 1.",
                load.kv_share,
            ),
        ):
            gauge = GaugeMetricFamily(f"vllm:{key}", text, labels=["model_name"])
            gauge.add_metric([name], value)
            yield gauge
        for key, text, count in (
            ("prompt_tokens", "Tokens of prefilled prompts.", load.prompt_tokens),
            ("generation_tokens", "Output tokens.", load.output_tokens),
            ("request_success", "Completed requests.", load.completed),
        ):
            counter = CounterMetricFamily(f"vllm:{key}", text, labels=["model_name"])
            counter.add_metric([name], count)
            yield counter
        for key, text, count in (
            ("requests_failed", "Failed requests.", load.failed),
            ("requests_refused", "Rejected requests.", load.refused),
        ):
            counter = CounterMetricFamily(f"helix_{key}", text)
            counter.add_metric([], count)
            yield counter
        nodes = GaugeMetricFamily(
            "helix_node_up", "1 if the worker of a node is ready.", labels=["node"]
        )
        for node, is_up in load.nodes_up.items():
            nodes.add_metric([node], float(is_up))
        yield nodes


class Metrics:
    """The metrics of an endpoint."""

    def __init__(self, frontend: Frontend) -> None:
        self._registry = CollectorRegistry()
        self._gauges = _Gauges(frontend)
        self._registry.register(self._gauges)
        name = frontend.model_name
        self.first_token_s, self.gap_s, self.whole_s = (
            Histogram(
                f"vllm:{key}",
                text,
                ["model_name"],
                buckets=_SECONDS,
                registry=self._registry,
            ).labels(name)
            for key, text in (
                ("time_to_first_token_seconds", "From the request to its first token."),
                ("inter_token_latency_seconds", "From one token to the next."),
                ("e2e_request_latency_seconds", "From the request to its last token."),
            )
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, of all processes that share a folder."""
        if _FOLDER not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        shared.register(self._gauges)
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)
