"""What a node does, in the simulator and in a real worker: the same suite for all executors."""

from __future__ import annotations

import pytest
from builders import decode, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from node_bodies import SimulatedNode, TorchNode, WorkerNode

from helixsim.control.node_schedulers.composition import StepLimits
from helixsim.physics.engine import EngineCosts


@pytest.fixture(
    params=[
        SimulatedNode,
        WorkerNode,
        pytest.param(TorchNode, marks=pytest.mark.torch),
    ],
    ids=["simulated", "emulated", "torch"],
)
def node(request, tmp_path, monkeypatch):
    """Makes a node of one kind."""
    if request.param is TorchNode:
        from tiny_llama import write_tiny_llama

        monkeypatch.setattr(TorchNode, "model", write_tiny_llama(tmp_path))
    return request.param


def test_a_batch_takes_all_layers_one_after_another(node):
    it = node(layers=(0, 3))
    it.come(10.0, prompt(5, 0))
    assert it.run() == [(25.0, [0])]


def test_prompts_and_decodes_take_their_times_together(node):
    it = node()
    it.come(0.0, prompt(5, 0), prompt(7, 1), decode(50, 2), decode(60, 3))
    assert it.run() == [(14.0, [0, 1, 2, 3])]


def test_a_decode_alone_takes_twice_as_long(node):
    it = node()
    it.come(0.0, decode(50, 0))
    it.come(10.0, decode(50, 0), decode(50, 1))
    it.come(20.0, decode(50, 0), prompt(5, 1))
    assert it.run() == [(2.0, [0]), (12.0, [0, 1]), (27.0, [0, 1])]


def test_a_request_that_comes_meanwhile_waits_for_the_next_batch(node):
    it = node(layers=(0, 2))
    it.come(0.0, prompt(5, 0))
    it.come(1.0, prompt(3, 1))
    it.come(9.0, prompt(4, 2))
    assert it.run() == [(10.0, [0]), (24.0, [1, 2])]


def test_a_request_that_comes_as_a_batch_ends_joins_the_next(node):
    it = node(layers=(0, 2))
    it.come(0.0, prompt(5, 0))
    it.come(10.0, prompt(3, 1))
    it.come(10.0, prompt(4, 2))
    assert it.run() == [(10.0, [0]), (24.0, [1, 2])]


def test_requests_that_come_to_an_idle_node_at_one_instant_run_together(node):
    it = node()
    it.come(3.0, prompt(3, 0), prompt(4, 1))
    assert it.run() == [(10.0, [0, 1])]


def test_limits_hold_for_every_batch(node):
    it = node(max_prompts=2, max_prompt_tokens=10)
    it.come(0.0, prompt(6, 0), prompt(5, 1), prompt(2, 2), prompt(1, 3))
    assert it.run() == [(8.0, [0, 2]), (14.0, [1, 3])]


def test_requests_enter_where_their_route_says(node):
    it = node(layers=(0, 3), entries=(1,))
    it.come(0.0, prompt(5, 0), layer=1)
    assert it.run() == [(10.0, [0])]


def test_a_request_that_waits_at_a_layer_joins_the_batch_that_passes(node):
    it = node(layers=(0, 3), entries=(1,))
    it.come(0.0, prompt(5, 0))  # reaches layer 1 at 5
    it.come(2.0, prompt(2, 1), layer=1)
    assert it.run() == [(19.0, [1, 0])]  # two layers for seven tokens


def test_a_request_that_comes_to_a_layer_as_a_batch_does_joins_it(node):
    it = node(layers=(0, 2), entries=(1,))
    it.come(0.0, prompt(5, 0))
    it.come(5.0, prompt(2, 1), layer=1)
    assert it.run() == [(12.0, [1, 0])]


def test_a_node_goes_round_its_layers(node):
    it = node(layers=(0, 4), entries=(1, 3), max_prompts=1)
    it.come(0.0, prompt(1, 0))
    it.come(0.5, prompt(2, 1))
    it.come(0.5, prompt(3, 2), layer=3)
    it.come(0.5, prompt(4, 3), layer=1)
    # Till 1: 0 on layer 0. Till 9: 3, which was at layer 1 first, on 1 and 2. Till 12: 2, which
    # was at layer 3 first. Till 14: 1 on layer 0. Till 16: 0 on 1 and 2. Till 20: 3 on 3. Till
    # 24: 1 on 1 and 2. Till 25: 0 on 3. Till 27: 1 on 3.
    assert it.run() == [(12.0, [2]), (20.0, [3]), (25.0, [0]), (27.0, [1])]


def test_an_idle_node_begins_with_its_first_layer(node):
    it = node(layers=(0, 2), entries=(1,))
    it.come(0.0, prompt(2, 1), layer=1)
    it.come(0.0, prompt(1, 0))
    # One second on layer 0, then both on layer 1.
    assert it.run() == [(4.0, [1, 0])]


def test_tokens_that_have_come_are_paid_for_at_the_first_layer(node):
    it = node(layers=(0, 2), activation_bytes=2e9)
    it.come(0.0, prompt(10, 0))
    # A token's 2 GB at 4 and at 5 GB/s: 10 + 10 x (0.5 + 0.4), then 10 for the second layer.
    assert it.run() == [(29.0, [0])]


def test_tokens_of_requests_that_do_not_run_are_paid_for_too(node):
    it = node(layers=(0, 2), entries=(1,), activation_bytes=2e9, max_prompts=1)
    it.come(0.0, prompt(10, 0), layer=1)  # enters at 1: pays nothing, runs till 10
    it.come(1.0, prompt(1, 1), prompt(2, 2))
    # At 10, request 1 pays for all 13 tokens: 1 + 13 x 0.9; then its second layer.
    first = 10.0 + (1.0 + 13 * 2e9 / 4e9 + 13 * 2e9 / 5e9) + 1.0
    assert it.run() == [(10.0, [0]), (first, [1]), (first + 4.0, [2])]


# -- chunks in a stream, and steps that wait for more ---------------------------------------------


def stream(num_tokens, index, chunk_tokens):
    """A prefill as chunks, the request last."""
    request = prompt(num_tokens, index)
    request.split_prefill(chunk_tokens)
    return [*request.stream(), request]


def test_chunks_run_one_after_another_and_end_with_the_last_layer(node):
    it = node(composition=StepLimits(max_prefill_tokens=2))
    it.come(0.0, *stream(6, 0, 2))
    assert it.run() == [(6.0, [0])]


def test_chunks_go_on_to_the_next_node(node):
    it = node(composition=StepLimits(max_prefill_tokens=2), num_llm_layers=8)
    it.come(0.0, *stream(6, 0, 2))
    assert it.run() == [(2.0, [0]), (4.0, [0]), (6.0, [0])]


def test_several_chunks_of_a_prompt_run_in_one_batch(node):
    it = node(composition=StepLimits(max_prefill_tokens=4))
    first, second, last = stream(6, 0, 2)
    it.come(0.0, first, second)
    it.come(1.0, last)
    assert it.run() == [(6.0, [0])]


def test_decodes_and_chunks_take_turns(node):
    it = node(composition=StepLimits(max_prefill_tokens=2))
    it.come(0.0, *stream(4, 0, 2), decode(50, 1), decode(50, 2))
    # The decodes take 2 s, the chunks 2 s each.
    assert it.run() == [(2.0, [1, 2]), (6.0, [0])]


def test_chunks_of_a_request_that_is_dropped_are_ignored(node):
    it = node(composition=StepLimits(max_prefill_tokens=2), num_llm_layers=8)
    *chunks, request = stream(6, 0, 2)
    it.come(0.0, *chunks)
    it.drop(1.0, request)
    it.come(3.0, request)
    it.come(5.0, prompt(1, 1))
    assert it.run() == [(6.0, [1])]


def test_a_step_of_few_decodes_waits_for_those_right_behind(node):
    it = node(composition=StepLimits(max_decodes=2, max_wait_s=1.0))
    it.come(0.0, decode(50, 0))  # alone 2 s, of which a wait without arrivals is one part in 32
    it.come(10.0, decode(50, 0))
    it.come(10.03125, decode(50, 1))
    it.come(20.0, decode(50, 0))
    it.come(20.5, decode(50, 1))
    assert it.run() == [(2.0, [0]), (12.03125, [0, 1]), (22.0625, [0]), (24.0625, [1])]


# -- whatever comes: both executors carry out the same steps ---------------------------------------

LAYERS, ENTRIES = (0, 4), (1, 3)
jobs = st.lists(
    st.tuples(
        st.integers(0, 30),  # when its first pass arrives
        st.sampled_from((0, *ENTRIES)),  # where it enters
        st.lists(st.integers(1, 6), min_size=1, max_size=3),  # its chunks; empty: a decode
        st.integers(0, 4),  # decodes that follow
        st.integers(1, 5),  # time between a pass that leaves and the next that arrives
    ),
    min_size=1,
    max_size=10,
)


def play(node, jobs, lost):
    """Send jobs pass by pass; some are dropped at a time, as when another node is lost."""
    requests, left = {}, {}
    for index, (at, layer, chunks, num_decodes, gap) in enumerate(jobs):
        request = requests[index] = prompt(sum(chunks), index)
        request.num_new_tokens = chunks[0]
        left[index] = (list(chunks[1:]), num_decodes, gap, layer)
        node.come(float(at), request, layer=layer)

    def go_on(now, indices):
        for index in indices:
            if lost is not None and index in lost[1] and now >= lost[0]:
                continue
            chunks, num_decodes, gap, layer = left[index]
            request = requests[index]
            if not chunks and not num_decodes:
                continue
            request.num_computed_tokens += request.num_new_tokens
            request.num_new_tokens = chunks.pop(0) if chunks else 1
            if (
                not chunks
                and request.num_computed_tokens + request.num_new_tokens > request.prompt_tokens
            ):
                request.is_prefill = False
                num_decodes -= 1
            left[index] = (chunks, num_decodes, gap, layer)
            node.come(now + gap, request, layer=layer)

    node.when_departed = go_on
    if lost is not None:
        at, which = lost
        node.drop(float(at), *(requests[index] for index in which if index in requests))
    return node.run()


limits_of_steps = st.builds(
    StepLimits,
    max_prefill_tokens=st.none() | st.integers(1, 12),
    max_decodes=st.sampled_from((None, "auto", 1, 2, 3)),
    max_wait_s=st.sampled_from(("auto", 0.0, 0.5, 2.0)),
)
streamed_jobs = st.lists(
    st.tuples(
        st.integers(0, 30),  # when its first chunk arrives
        st.sampled_from((0, *ENTRIES)),  # where it enters
        st.integers(1, 12),  # tokens of its prompt
        st.integers(1, 6),  # tokens of a chunk
        st.integers(0, 4),  # decodes that follow
        st.integers(1, 5),  # time between a pass that leaves and the next that arrives
        st.integers(0, 3),  # time between two chunks
    ),
    min_size=1,
    max_size=10,
)


def play_streams(node, jobs, lost, *, chunks_go_on):
    """Send prefills as streams, then decodes one by one; requests are dropped when they end."""
    requests, left = {}, {}
    for index, (at, layer, num_tokens, chunk_tokens, num_decodes, gap, apart) in enumerate(jobs):
        passes = stream(num_tokens, index, chunk_tokens)
        requests[index] = passes[-1]
        left[index] = [len(passes) if chunks_go_on else 1, num_decodes, gap, layer]
        for place, each in enumerate(passes):
            node.come(float(at + place * apart), each, layer=layer)

    def go_on(now, indices):
        for index in indices:
            if lost is not None and index in lost[1] and now >= lost[0]:
                continue
            left[index][0] -= 1
            num_passes, num_decodes, gap, layer = left[index]
            request = requests[index]
            if num_passes > 0:
                continue
            if not num_decodes:
                node.drop(now + gap, request)
                continue
            left[index][1] -= 1
            request.num_computed_tokens += request.num_new_tokens
            request.num_new_tokens = 1
            request.is_prefill = False
            node.come(now + gap, request, layer=layer)

    node.when_departed = go_on
    if lost is not None:
        at, which = lost
        node.drop(float(at), *(requests[index] for index in which if index in requests))
    return node.run()


@settings(max_examples=300, deadline=None)
@given(
    streamed_jobs,
    limits_of_steps,
    st.integers(1, 3),
    st.integers(12, 20),
    st.integers(1, 4),
    st.none() | st.tuples(st.integers(0, 60), st.sets(st.integers(0, 9), max_size=3)),
    st.booleans(),
)
def test_composed_steps_of_the_paper_scheduler(
    jobs, composition, max_prompts, max_prompt_tokens, max_decode_tokens, lost, chunks_go_on
):
    settings = {
        "max_prompts": max_prompts,
        "max_prompt_tokens": max_prompt_tokens,
        "max_decode_tokens": max_decode_tokens,
        "composition": composition,
        "num_llm_layers": 8 if chunks_go_on else 4,
    }
    logs = [
        play_streams(kind(LAYERS, ENTRIES, **settings), jobs, lost, chunks_go_on=chunks_go_on)
        for kind in (SimulatedNode, WorkerNode)
    ]
    assert logs[0] == logs[1]
    first = {index for _, batch in logs[0] for index in batch}
    assert first >= set(range(len(jobs))) - (lost[1] if lost else set())


@settings(max_examples=300, deadline=None)
@given(
    streamed_jobs,
    limits_of_steps,
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from(
        (
            ("paper", EngineCosts()),
            ("prototype", EngineCosts(batching="separate")),
            ("prototype", EngineCosts(batching="mixed")),
            ("prototype", EngineCosts(batching="separate", poll_layer_s=0.3)),
        )
    ),
    st.none() | st.tuples(st.integers(0, 60), st.sets(st.integers(0, 9), max_size=3)),
    st.booleans(),
)
def test_composed_steps_with_little_kv(
    jobs, composition, num_blocks, max_decode_tokens, scheduler, lost, chunks_go_on
):
    settings = {
        "max_decode_tokens": max_decode_tokens,
        "kv_token_layers": 16 * 4 * num_blocks,
        "composition": composition,
        "num_llm_layers": 8 if chunks_go_on else 4,
        "scheduler": scheduler[0],
        "engine": scheduler[1],
        "counts_kv": True,
    }
    logs = [
        play_streams(kind(LAYERS, ENTRIES, **settings), jobs, lost, chunks_go_on=chunks_go_on)
        for kind in (SimulatedNode, WorkerNode)
    ]
    assert logs[0] == logs[1]


@settings(max_examples=200, deadline=None)
@given(
    jobs,
    st.integers(1, 3),
    st.integers(6, 20),
    st.integers(1, 4),
    st.none() | st.tuples(st.integers(0, 60), st.sets(st.integers(0, 9), max_size=3)),
)
def test_steps_of_the_paper_scheduler(
    jobs, max_prompts, max_prompt_tokens, max_decode_tokens, lost
):
    limits = {
        "max_prompts": max_prompts,
        "max_prompt_tokens": max_prompt_tokens,
        "max_decode_tokens": max_decode_tokens,
    }
    logs = [
        play(kind(LAYERS, ENTRIES, activation_bytes=1e9, **limits), jobs, lost)
        for kind in (SimulatedNode, WorkerNode)
    ]
    assert logs[0] == logs[1]
    first = {index for _, batch in logs[0] for index in batch}
    assert first >= set(range(len(jobs))) - (lost[1] if lost else set())


@settings(max_examples=200, deadline=None)
@given(
    jobs,
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 4),
    st.none() | st.tuples(st.integers(0, 60), st.sets(st.integers(0, 9), max_size=3)),
)
def test_steps_of_the_paper_scheduler_with_little_kv(
    jobs, num_blocks, max_prompts, max_decode_tokens, lost
):
    """As a real engine has it: requests without blocks are preempted when their batch starts."""
    limits = {
        "max_prompts": max_prompts,
        "max_decode_tokens": max_decode_tokens,
        "kv_token_layers": 16 * 4 * num_blocks,
    }
    logs = [
        play(kind(LAYERS, ENTRIES, counts_kv=True, **limits), jobs, lost)
        for kind in (SimulatedNode, WorkerNode)
    ]
    assert logs[0] == logs[1]


@settings(max_examples=200, deadline=None)
@given(
    jobs,
    st.integers(1, 12),  # blocks of 16 tokens on each layer
    st.integers(6, 20),
    st.integers(1, 4),
    st.sampled_from(("separate", "mixed")),
    st.sampled_from((0.0, 0.3)),
    st.none() | st.tuples(st.integers(0, 60), st.sets(st.integers(0, 9), max_size=3)),
)
def test_steps_of_the_prototype_scheduler(
    jobs, num_blocks, max_num_batched_tokens, max_decode_tokens, batching, poll_layer_s, lost
):
    engine = EngineCosts(
        batching=batching, max_num_batched_tokens=max_num_batched_tokens, poll_layer_s=poll_layer_s
    )
    limits = {"max_decode_tokens": max_decode_tokens, "kv_token_layers": 16 * 4 * num_blocks}
    logs = [
        play(kind(LAYERS, ENTRIES, scheduler="prototype", engine=engine, **limits), jobs, lost)
        for kind in (SimulatedNode, WorkerNode)
    ]
    assert logs[0] == logs[1]
