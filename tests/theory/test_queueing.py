"""Against queueing theory, over many seeds."""

from __future__ import annotations

from functools import cache
from math import exp
from random import Random
from statistics import fmean

import numpy as np
import pytest
from builders import HOST
from queues import SEEDS, TOKENS, check, poisson, run

RATE = 5.0
SERVICE_S = 0.1
RHO = RATE * SERVICE_S
DURATION_S = 600.0
WARMUP_S = 20.0
MD1_S = SERVICE_S * (1 + RHO / (2 * (1 - RHO)))
"""Mean sojourn where all services take the same."""


def requests_of(seed, *, exponential=False):
    return poisson(Random(seed), RATE, DURATION_S, exponential=exponential)


@cache
def node_runs(*, exponential):
    """A node alone, for every seed."""
    return [
        run(
            [SERVICE_S],
            requests_of(seed, exponential=exponential),
            duration_s=DURATION_S,
            warmup_s=WARMUP_S,
            sample_interval_s=0.7,
        )
        for seed in SEEDS
    ]


@cache
def chain_run(services, seed):
    """Nodes one behind the other."""
    return run(services, requests_of(seed), duration_s=DURATION_S, warmup_s=WARMUP_S)


@cache
def link_runs(pair):
    """A link on which a prompt takes a tenth of a second, and a decode next to nothing."""
    bandwidth = TOKENS * 2.0 / SERVICE_S
    return [
        run(
            [1e-9],
            requests_of(seed),
            duration_s=DURATION_S,
            links={pair: (bandwidth, 0.25)},
            warmup_s=WARMUP_S,
        )
        for seed in SEEDS
    ]


def sojourn_s(result):
    return result.summary["prompt_latency_s"]["mean"]


def prompt_times(result):
    """When prompts left the coordinator, and when they were back."""
    _, _, phase, start, end = result.tables["iterations"].values
    prompts = np.array([name == "prompt" for name in phase])
    return np.array(start)[prompts], np.array(end)[prompts]


def column(result, table, name):
    return result.tables[table].as_dict()[name]


# -- a node


def check_laws(results):
    """What holds whatever the service times: the utilisation law, and Little's."""
    check([fmean(column(r, "nodes", "utilisation")) for r in results], RHO, at_most=0.05)
    ratios = []
    for result in results:
        seen = fmean(column(result, "timeline", "active_requests"))
        spent = np.nansum(column(result, "requests", "e2e_s"))
        ratios.append(seen / (spent / DURATION_S))
    check(ratios, 1.0, at_most=0.05)


def test_exponential_prompts_make_an_mm1_queue():
    results = node_runs(exponential=True)
    mean_s = SERVICE_S / (1 - RHO)
    check([sojourn_s(result) for result in results], mean_s, at_most=0.1)
    # Sojourns are exponential: a share of 1/e takes longer than the mean.
    longer = [np.mean(np.subtract(*prompt_times(result)) < -mean_s) for result in results]
    check(longer, exp(-1), at_most=0.1)
    check_laws(results)


def test_equal_prompts_make_an_md1_queue():
    results = node_runs(exponential=False)
    check([sojourn_s(result) for result in results], MD1_S, at_most=0.05)
    # Prompts that wait or run, as seen at any time, whoever arrives or leaves.
    counts = []
    for result in results:
        start, end = prompt_times(result)
        looks = np.arange(2.0 + WARMUP_S, 2.0 + DURATION_S, 0.5)
        inside = np.searchsorted(start, looks, "right") - np.searchsorted(end, looks, "right")
        counts.append(np.mean(inside))
        assert min(np.diff(end)) == pytest.approx(SERVICE_S, abs=1e-6)
    check(counts, RATE * MD1_S, at_most=0.1)
    check_laws(results)


# -- nodes one behind the other


@pytest.mark.parametrize("second_s", [0.1, 0.06])
def test_behind_a_node_that_takes_as_long_no_request_waits(second_s):
    for seed in SEEDS[:2]:
        _, both = prompt_times(chain_run((0.1, second_s), seed))
        _, alone = prompt_times(chain_run((0.1,), seed))
        assert len(both) > 2500
        assert both - alone[: len(both)] == pytest.approx(second_s, abs=1e-6)


def test_the_order_of_servers_with_fixed_times_changes_no_sojourn():
    """Friedman (1965)."""
    for seed in SEEDS[:2]:
        _, slow_first = prompt_times(chain_run((0.1, 0.06), seed))
        _, slow_last = prompt_times(chain_run((0.06, 0.1), seed))
        assert slow_first == pytest.approx(slow_last, abs=1e-6)


def test_a_chain_is_an_md1_queue_and_the_other_services():
    means = [sojourn_s(chain_run((0.06, 0.1, 0.03), seed)) for seed in SEEDS]
    check(means, MD1_S + 0.06 + 0.03, at_most=0.05)


# -- a link


@pytest.mark.parametrize("pair", [(HOST, "n0"), ("n0", HOST)])
def test_a_link_is_an_md1_queue_and_its_latency(pair):
    # A decode takes a two-hundredth of a prompt's time, and lengthens a prompt's wait by that.
    means = [sojourn_s(result) - 0.25 for result in link_runs(pair)]
    check(means, MD1_S, at_most=0.05)


def test_a_link_is_busy_with_what_goes_over_it():
    shares = []
    for result in link_runs((HOST, "n0")):
        rows = zip(
            column(result, "links", "source"), column(result, "links", "utilisation"), strict=True
        )
        shares.append(fmean(share for source, share in rows if source == HOST))
    check(shares, RHO * (1 + 1 / TOKENS), at_most=0.05)
