"""``/metrics``: metrics in Prometheus' text format, with vLLM's names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from helixreal.serving.frontend import Frontend, GenerationRequest, Token

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which processes share their counts."""
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAP_S = (0.001, 0.0025, 0.005, *_FIRST_TOKEN_S)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_FINISHED = ("stop", "length", "abort", "error")


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
            ("num_preemptions", "Restarts of requests.", load.restarts),
            (
                "prefix_cache_queries",
                "Tokens looked up in prefix caches.",
                load.cache_asked_tokens,
            ),
            ("prefix_cache_hits", "Tokens found in prefix caches.", load.cache_hit_tokens),
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
    """The metrics of an endpoint.

    Parameters
    ----------
    frontend
        The cluster.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._registry = CollectorRegistry()
        self._gauges = _Gauges(frontend)
        self._registry.register(self._gauges)
        self.model_name = frontend.model_name
        self.finished = Counter(
            "vllm:request_success",
            "Requests by how they have finished.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in _FINISHED:
            self.finished.labels(self.model_name, reason)
        seconds = _FIRST_TOKEN_S
        made = self._histogram
        self.first_token_s = made(
            "time_to_first_token_seconds", "From the request to its first token.", seconds
        )
        self.gap_s = made("inter_token_latency_seconds", "From one token to the next.", _GAP_S)
        self.per_token_s = made(
            "request_time_per_output_token_seconds",
            "Mean time from one token to the next, of each request.",
            _GAP_S,
        )
        self.whole_s = made(
            "e2e_request_latency_seconds", "From the request to its last token.", seconds
        )
        self.queue_s = made(
            "request_queue_time_seconds", "From the request to its admission.", seconds
        )
        self.prefill_s = made(
            "request_prefill_time_seconds", "From the admission to the first token.", seconds
        )
        self.decode_s = made(
            "request_decode_time_seconds", "From the first token to the last.", seconds
        )
        self.inference_s = made(
            "request_inference_time_seconds", "From the admission to the last token.", seconds
        )
        self.prompt_tokens = made("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.output_tokens = made("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.max_tokens = made(
            "request_params_max_tokens", "Limit of the tokens of an answer.", _TOKENS
        )

    def _histogram(self, key: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"vllm:{key}", text, ["model_name"], buckets=buckets, registry=self._registry
        )
        labelled: Histogram = histogram.labels(self.model_name)
        return labelled

    def begin(self, generation: GenerationRequest) -> Timing:
        """A request is submitted now."""
        return Timing(self, generation)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, of all processes that share a folder."""
        if _FOLDER not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        shared.register(self._gauges)
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


class Timing:
    """Measures one request.

    Parameters
    ----------
    metrics
        Where to record it.
    generation
        The request.
    """

    def __init__(self, metrics: Metrics, generation: GenerationRequest) -> None:
        self._metrics = metrics
        self._generation = generation
        self._began_s = self._last_s = time.monotonic()
        self._first_s: float | None = None
        self._queued_s = 0.0
        self._num_tokens = 0

    def token(self, token: Token) -> None:
        """A token has come."""
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            self._queued_s = token.queued_s
            self._metrics.first_token_s.observe(now_s - self._began_s)
        else:
            self._metrics.gap_s.observe(now_s - self._last_s)
        self._num_tokens += 1
        self._last_s = now_s

    def end(self, reason: str) -> None:
        """The request has ended: ``stop``, ``length``, ``abort`` by its client, or ``error``."""
        metrics = self._metrics
        metrics.finished.labels(metrics.model_name, reason).inc()
        if reason not in ("stop", "length"):
            return
        metrics.whole_s.observe(self._last_s - self._began_s)
        metrics.prompt_tokens.observe(len(self._generation.prompt))
        metrics.output_tokens.observe(self._num_tokens)
        metrics.max_tokens.observe(self._generation.max_tokens)
        if self._first_s is None:
            return
        admitted_s = min(self._began_s + self._queued_s, self._first_s)
        metrics.queue_s.observe(admitted_s - self._began_s)
        metrics.prefill_s.observe(self._first_s - admitted_s)
        metrics.decode_s.observe(self._last_s - self._first_s)
        metrics.inference_s.observe(self._last_s - admitted_s)
        if self._num_tokens > 1:
            gap_s = (self._last_s - self._first_s) / (self._num_tokens - 1)
            metrics.per_token_s.observe(gap_s)
