"""One node with its inbox filled by hand: what runs when, in batches of whom.

A token takes a second on a layer and a decode takes one too, but two if it is alone. Requests
come over links that take no time.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

from builders import capacity, decode, make_scenario, make_timer, make_topology, prompt

from helixsim.batching import Batch
from helixsim.coordinator import ContextBound
from helixsim.models.environment import Alarm, ExactEnvironment
from helixsim.models.gpu import Gpu
from helixsim.models.nic import Inbox, Link
from helixsim.placement.topology import PlacedLink


class Bench:
    """A node on its own: requests go in at times of our choice, departures are noted."""

    def __init__(self, layers=(0, 1), entries=(), activation_bytes=0.0, **limits):
        start = layers[0]
        around = {"node": layers}
        if start:
            around["before"] = (0, start)
        scenario = make_scenario(
            around, requests=[(0, 1, 1)], activation_bytes=activation_bytes, room=capacity(**limits)
        )
        self.environment = ExactEnvironment()
        self.inbox = Inbox()
        self.contexts = ContextBound()
        self.contexts.longest = 1000
        self.gpu = Gpu(
            self.environment,
            make_topology(scenario).nodes[0],
            set(entries),
            make_timer(scenario),
            self.inbox,
            self.contexts,
        )
        self.gpu.connect(self, num_sources=1)
        self.log = []
        self._links = {
            layer: Link(
                PlacedLink(0, 1, 0, inf, 0.0, layer, 2.0),
                inf,
                self.inbox,
                self.environment.next_number,
            )
            for layer in (start, *entries)
        }

    def depart(self, batch, now):
        self.log.append((now, [request.index for request in batch.requests]))

    def come(self, at, *requests, layer=None):
        """Let requests come in at a time, at the node's first layer or at another."""
        link = self._links[min(self._links) if layer is None else layer]
        alarm = Alarm(self.environment, lambda: link.send(Batch.of(list(requests)), at))
        alarm.set(at, 0.0)

    def run(self, until=1000.0):
        self.environment.run_through(until)
        return self.log


def test_a_batch_takes_all_layers_one_after_another():
    bench = Bench(layers=(0, 3))
    bench.come(10.0, prompt(5, 0))
    assert bench.run() == [(25.0, [0])]


def test_prompts_and_decodes_take_their_times_together():
    bench = Bench()
    bench.come(0.0, prompt(5, 0), prompt(7, 1), decode(50, 2), decode(60, 3))
    assert bench.run() == [(14.0, [0, 1, 2, 3])]


def test_a_decode_alone_takes_twice_as_long():
    bench = Bench()
    bench.come(0.0, decode(50, 0))
    bench.come(10.0, decode(50, 0), decode(50, 1))
    bench.come(20.0, decode(50, 0), prompt(5, 1))
    assert bench.run() == [(2.0, [0]), (12.0, [0, 1]), (27.0, [0, 1])]


def test_who_comes_meanwhile_waits_for_the_next_batch():
    bench = Bench(layers=(0, 2))
    bench.come(0.0, prompt(5, 0))
    bench.come(1.0, prompt(3, 1))
    bench.come(9.0, prompt(4, 2))
    assert bench.run() == [(10.0, [0]), (24.0, [1, 2])]


def test_who_comes_as_a_batch_ends_joins_the_next():
    bench = Bench(layers=(0, 2))
    bench.come(0.0, prompt(5, 0))
    bench.come(10.0, prompt(3, 1))
    bench.come(10.0, prompt(4, 2))
    assert bench.run() == [(10.0, [0]), (24.0, [1, 2])]


def test_all_who_come_to_an_idle_node_at_one_instant_run_together():
    bench = Bench()
    bench.come(3.0, prompt(3, 0), prompt(4, 1))
    assert bench.run() == [(10.0, [0, 1])]


def test_limits_hold_for_every_batch():
    bench = Bench(max_prompts=2, max_prompt_tokens=10)
    bench.come(0.0, prompt(6, 0), prompt(5, 1), prompt(2, 2), prompt(1, 3))
    assert bench.run() == [(8.0, [0, 2]), (14.0, [1, 3])]


def test_requests_enter_where_their_route_says():
    bench = Bench(layers=(0, 3), entries=(1,))
    bench.come(0.0, prompt(5, 0), layer=1)
    assert bench.run() == [(10.0, [0])]


def test_who_waits_at_a_layer_joins_the_batch_that_passes():
    bench = Bench(layers=(0, 3), entries=(1,))
    bench.come(0.0, prompt(5, 0))  # reaches layer 1 at 5
    bench.come(2.0, prompt(2, 1), layer=1)
    assert bench.run() == [(19.0, [1, 0])]  # two layers for seven tokens


def test_who_comes_to_a_layer_as_a_batch_does_joins_it():
    bench = Bench(layers=(0, 2), entries=(1,))
    bench.come(0.0, prompt(5, 0))
    bench.come(5.0, prompt(2, 1), layer=1)
    assert bench.run() == [(12.0, [1, 0])]


def test_a_node_goes_round_its_layers():
    bench = Bench(layers=(0, 4), entries=(1, 3), max_prompts=1)
    bench.come(0.0, prompt(1, 0))
    bench.come(0.5, prompt(2, 1))
    bench.come(0.5, prompt(3, 2), layer=3)
    bench.come(0.5, prompt(4, 3), layer=1)
    # Till 1: 0 on layer 0. Till 9: 3, which was at layer 1 first, on 1 and 2. Till 12: 2, which
    # was at layer 3 first. Till 14: 1 on layer 0. Till 16: 0 on 1 and 2. Till 20: 3 on 3. Till
    # 24: 1 on 1 and 2. Till 25: 0 on 3. Till 27: 1 on 3.
    assert bench.run() == [(12.0, [2]), (20.0, [3]), (25.0, [0]), (27.0, [1])]


def test_an_idle_node_begins_with_its_first_layer():
    bench = Bench(layers=(0, 2), entries=(1,))
    bench.come(0.0, prompt(2, 1), layer=1)
    bench.come(0.0, prompt(1, 0))
    # One second on layer 0, then both on layer 1.
    assert bench.run() == [(4.0, [1, 0])]


def test_tokens_that_have_come_are_paid_for_at_the_first_layer():
    bench = Bench(layers=(0, 2), activation_bytes=2e9)
    bench.come(0.0, prompt(10, 0))
    # A token's 2 GB at 4 and at 5 GB/s: 10 + 10 x (0.5 + 0.4), then 10 for the second layer.
    assert bench.run() == [(29.0, [0])]


def test_tokens_of_strangers_are_paid_for_too():
    bench = Bench(layers=(0, 2), entries=(1,), activation_bytes=2e9, max_prompts=1)
    bench.come(0.0, prompt(10, 0), layer=1)  # enters at 1: pays nothing, runs till 10
    bench.come(1.0, prompt(1, 1), prompt(2, 2))
    # At 10, request 1 pays for all 13 tokens: 1 + 13 x 0.9; then its second layer.
    first = 10.0 + (1.0 + 13 * 2e9 / 4e9 + 13 * 2e9 / 5e9) + 1.0
    assert bench.run() == [(10.0, [0]), (first, [1]), (first + 4.0, [2])]


def test_gauges_of_a_node():
    bench = Bench(layers=(0, 2), max_prompts=1)
    gpu = bench.gpu
    assert gpu.busy_s(0.0) == 0.0
    bench.come(1.0, prompt(5, 0), prompt(2, 1))
    bench.come(2.0, prompt(3, 2))
    bench.run(until=4.0)
    assert (gpu.num_running, gpu.num_waiting, gpu.num_batches, gpu.num_tokens) == (1, 1, 1, 5)
    assert gpu.waiting_at_first_layer(4.0) == 2
    assert gpu.busy_s(4.0) == 3.0
    bench.run(until=12.0)
    assert (gpu.num_batches, gpu.num_tokens, gpu.busy_s(12.0)) == (2, 7, 11.0)
    bench.run(until=100.0)
    assert (gpu.num_running, gpu.num_waiting, gpu.num_batches, gpu.num_tokens) == (0, 0, 3, 10)
    assert gpu.busy_s(100.0) == 20.0
    assert [end - start for (start, _), (end, _) in pairwise(bench.log)] == [4.0, 6.0]


def test_the_coordinator_is_asked_before_a_look_and_told_of_idling():
    bench = Bench()
    calls = []
    bench.gpu.connect(
        bench,
        lambda now: calls.append(("before", now)),
        lambda: calls.append(("idle", bench.environment.now)),
        num_sources=2,
    )
    assert bench.gpu.is_unaware
    bench.come(1.0, prompt(5, 0))
    bench.run()
    assert calls == [("before", 1.0), ("before", 6.0), ("idle", 6.0)]


def test_where_the_layers_of_a_node_do_not_start_at_zero():
    bench = Bench(layers=(2, 5), entries=(4,))
    bench.come(0.0, prompt(5, 0))
    bench.come(1.0, prompt(1, 1), layer=4)
    assert bench.run() == [(16.0, [1, 0])]
