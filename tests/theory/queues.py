"""Clusters that are queues of textbooks: Poisson arrivals, one server, no other delays.

A request is a prompt and the one decode that is published with it. Decodes take no time here,
so that prompts have the node to themselves; batches are of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, sqrt
from random import Random
from statistics import fmean, stdev

from builders import HOST, capacity, make_machine_type, make_scenario
from scipy.stats import t

from helixsim.metrics.result import RunResult
from helixsim.models.simulation import simulate
from helixsim.profiles.machine import LatencyProfile, MachineType

SEEDS = range(10)
TOKENS = 200
"""The mean prompt."""
NO_TIME = LatencyProfile((0, 10**6, 2 * 10**6), (0.0, 0.0, 1.0))
INSTANT = (1e15, 1e-9)


def server(name: str, service_s: float, num_layers: int) -> MachineType:
    """A node that takes one prompt at a time, on one layer, and a mean one in `service_s`."""
    longest = 20 * TOKENS
    return make_machine_type(
        name,
        num_layers,
        prefill=LatencyProfile((0, longest), (0.0, service_s * longest / TOKENS)),
        decode=NO_TIME,
        room=capacity(max_prompts=1, max_prompt_tokens=longest),
    )


def poisson(rng: Random, rate: float, duration_s: float, *, exponential: bool) -> list:
    """Requests with exponential gaps; prompts all alike or of exponential lengths."""
    requests, at = [], rng.expovariate(rate)
    while at < duration_s:
        tokens = max(round(-TOKENS * log(1 - rng.random())), 1) if exponential else TOKENS
        requests.append((at, tokens, 1))
        at += rng.expovariate(rate)
    return requests


def run(
    service_s: Sequence[float],
    requests: list,
    *,
    duration_s: float,
    links: dict | None = None,
    warmup_s: float = 0.0,
    sample_interval_s: float = 10.0,
) -> RunResult:
    """Run requests through nodes one behind the other."""
    layers = {f"n{i}": (i, i + 1) for i in range(len(service_s))}
    names = [HOST, *layers, HOST]
    pairs = dict.fromkeys(pairwise(names), INSTANT)
    total = len(layers)
    types = {n: server(n, seconds, total) for n, seconds in zip(layers, service_s, strict=True)}
    scenario = make_scenario(
        layers,
        requests=requests,
        types=types,
        links=pairs | (links or {}),
        nics=dict.fromkeys((HOST, *layers), 1e18),
        activation_bytes=0.0,
        high_water_mark=1.0,
        duration_s=duration_s,
        warmup_s=warmup_s,
        sample_interval_s=sample_interval_s,
    )
    return simulate(scenario, record_iterations=True)


def interval(values: Sequence[float], confidence: float = 0.999) -> tuple[float, float]:
    """Mean of independent runs, and half the width of its confidence interval."""
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * stdev(values) / sqrt(len(values))
    return fmean(values), float(half)


def check(values: Sequence[float], expected: float, *, at_most: float) -> None:
    """The theory must lie in the interval, which must be narrow enough to mean something."""
    mean, half = interval(values)
    assert half <= at_most * expected
    assert abs(mean - expected) <= half
