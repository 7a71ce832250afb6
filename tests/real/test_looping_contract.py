"""A node whose decodes loop does the same in the simulator and in a real worker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looping_bodies import ENTRIES, LoopingWorkerNode, SimulatedLoopingNode

from helixsim.physics.engine import EngineCosts
from helixsim.requests import Request

KINDS = (SimulatedLoopingNode, LoopingWorkerNode)

asked = st.lists(
    st.tuples(
        st.integers(0, 60),  # when it arrives
        st.integers(1, 50),  # its prompt
        st.integers(0, 20),  # its decodes
        st.integers(0, 1),  # its priority
    ),
    min_size=1,
    max_size=10,
)
engines = st.builds(
    EngineCosts,
    max_num_batched_tokens=st.integers(6, 40),
    max_num_seqs=st.integers(1, 5),
    async_scheduling=st.booleans(),
    enable_prefix_caching=st.booleans(),
    scheduling=st.sampled_from(("fcfs", "priority")),
)
drops = st.none() | st.tuples(st.integers(0, 90), st.sets(st.integers(0, 9), max_size=3))


def ordered(log):
    """A log in which reports of an instant follow what leaves then: a worker sends tokens late."""
    return sorted(log, key=lambda entry: (entry[0], isinstance(entry[1], str)))


def play(node, jobs, lost):
    sent = [node.ask(float(at), index, *job) for index, (at, *job) in enumerate(jobs)]
    if lost is not None:
        node.drop(float(lost[0]), *lost[1])
    return node.run(), sent


@pytest.mark.parametrize("kind", ["whole", "first"])
@settings(max_examples=200, deadline=None)
@given(asked, engines, st.integers(2, 8), st.integers(1, 9), drops)
def test_steps_of_a_first_node(kind, jobs, engine, num_blocks, back_after_s, lost):
    logs = []
    for body in KINDS:
        node = body(kind, engine, num_blocks)
        node.back_after_s = float(back_after_s)
        log, sent = play(node, jobs, lost)
        logs.append(ordered(log))
    assert logs[0] == logs[1]
    gone = {index for *_, index in logs[0] if isinstance(index, int)} | (lost[1] if lost else set())
    for index, request in enumerate(sent):
        if index in gone:
            continue
        has_all = request.num_generated_tokens == request.num_decodes + (kind == "whole")
        assert has_all, "an answer is not complete"
        assert len(request.tokens) == request.prompt_tokens + request.num_generated_tokens
    if not lost:
        assert node.scheduler.kv.num_used == 0
        assert not node.executor.sequences


passes = st.lists(
    st.tuples(
        st.integers(0, 30),  # when its first pass arrives
        st.sampled_from((4, *ENTRIES)),  # where it enters
        st.lists(st.integers(1, 20), min_size=1, max_size=3),  # its chunks
        st.integers(0, 4),  # decodes that follow
        st.integers(1, 5),  # time between a pass that leaves and the next that arrives
    ),
    min_size=1,
    max_size=10,
)


def play_later(node, jobs, lost):
    requests, left = {}, {}
    for index, (at, layer, chunks, num_decodes, gap) in enumerate(jobs):
        request = Request(index, 0.0, sum(chunks), num_decodes + 1, num_decodes)
        request.num_new_tokens = chunks[0]
        requests[index], left[index] = request, (list(chunks[1:]), gap, layer)
        node.come(float(at), request, layer)

    def go_on(now, indices):
        for index in indices:
            request, (chunks, gap, layer) = requests[index], left[index]
            if (lost is not None and index in lost[1] and now >= lost[0]) or request.is_last_pass:
                continue
            if request.yields_token:
                request.num_generated_tokens += 1
                request.is_prefill = False
            request.num_computed_tokens += request.num_new_tokens
            request.num_new_tokens = chunks.pop(0) if chunks else 1
            node.come(now + gap, request, layer)

    node.when_departed = go_on
    if lost is not None:
        node.drop(float(lost[0]), *lost[1])
    return node.run()


@settings(max_examples=200, deadline=None)
@given(passes, engines, st.integers(2, 8), drops)
def test_steps_of_a_later_node(jobs, engine, num_blocks, lost):
    logs = [ordered(play_later(body("later", engine, num_blocks), jobs, lost)) for body in KINDS]
    assert logs[0] == logs[1]
    assert lost or any(isinstance(entry[1], list) for entry in logs[0])
