"""One node of the paper's physics, its inbox filled by hand: what runs when, in which batches.

A token takes a second on a layer and a decode takes one too, but two if it is alone. Requests
come over links that take no time.
"""

from __future__ import annotations

from itertools import pairwise

from builders import prompt
from node_bodies import SimulatedNode


def test_gauges_of_a_node():
    bench = SimulatedNode(layers=(0, 2), max_prompts=1)
    node = bench.node
    assert node.busy_s(0.0) == 0.0
    bench.come(1.0, prompt(5, 0), prompt(2, 1))
    bench.come(2.0, prompt(3, 2))
    bench.run(until=4.0)
    assert (node.num_running, node.num_waiting, node.num_batches, node.num_tokens) == (1, 2, 1, 5)
    assert node.queue_length == 2
    assert node.busy_s(4.0) == 3.0
    bench.run(until=12.0)
    assert (node.num_batches, node.num_tokens, node.busy_s(12.0)) == (2, 7, 11.0)
    bench.run(until=100.0)
    assert (node.num_running, node.num_waiting, node.num_batches, node.num_tokens) == (0, 0, 3, 10)
    assert node.busy_s(100.0) == 20.0
    assert [end - start for (start, _), (end, _) in pairwise(bench.log)] == [4.0, 6.0]


def test_the_coordinator_is_asked_before_a_look_and_told_of_idling():
    bench = SimulatedNode()
    calls = []
    bench.node.connect(
        bench,
        lambda now: calls.append(("before", now)),
        lambda: calls.append(("idle", bench.environment.now)),
        num_sources=2,
    )
    assert bench.node.is_unaware
    bench.come(1.0, prompt(5, 0))
    bench.run()
    assert calls == [("before", 1.0), ("before", 6.0), ("idle", 6.0)]


def test_where_the_layers_of_a_node_do_not_start_at_zero():
    bench = SimulatedNode(layers=(2, 5), entries=(4,))
    bench.come(0.0, prompt(5, 0))
    bench.come(1.0, prompt(1, 1), layer=4)
    assert bench.run() == [(16.0, [1, 0])]
