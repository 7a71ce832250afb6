"""What a step of a node takes, from what the node has seen."""

from __future__ import annotations

import pytest
from builders import capacity, decode, prompt
from hypothesis import given
from hypothesis import strategies as st

from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.control.node_schedulers.composition import AUTO, StepComposer, StepLimits
from helixsim.requests import PrefillChunk, Request
from helixsim.steps import Batch

AUTOMATIC = StepLimits(max_prefill_tokens=100, max_decodes=AUTO, max_wait_s=AUTO)


def streamed(num_tokens, chunk_tokens, index=0):
    """The chunks of a prompt, the request itself last."""
    request = Request(index, 0.0, num_tokens, 4, num_decodes=4, max_chunk_tokens=chunk_tokens)
    return [*request.stream(), request]


def scheduler(name="paper", limits=AUTOMATIC, num_stages=4.0, num_llm_layers=2, **room):
    inputs = NodeSchedulerInputs(
        name="node",
        start_layer=0,
        end_layer=1,
        entry_layers=(),
        limits=capacity(**room),
        num_llm_layers=num_llm_layers,
        composer=StepComposer(limits, num_stages),
    )
    return NODE_SCHEDULERS.get(name)(inputs)


def step_of(node):
    """Indices in the next step, which is through at once."""
    step = node.schedule()
    if step is None:
        return None
    taken = [request.index for batch in step.passes for request in batch.requests]
    for number in range(len(step.passes)):
        node.finish_pass(step, number)
    return taken


def test_chunks_cover_a_prompt_and_the_request_is_the_last():
    chunks = streamed(10, 4)
    assert [(c.num_computed_tokens, c.num_new_tokens) for c in chunks] == [(0, 4), (4, 4), (8, 2)]
    assert [type(chunk) for chunk in chunks] == [PrefillChunk, PrefillChunk, Request]
    assert {chunk.origin for chunk in chunks} == {chunks[-1]}
    assert chunks[-1].is_last_chunk


@pytest.mark.parametrize(
    ("residents", "num_stages", "most"), [(0, 20, 1), (40, 20, 10), (41, 20, 11), (40, 2, 20)]
)
def test_a_step_takes_a_quarter_of_the_residents(residents, num_stages, most):
    composer = StepComposer(AUTOMATIC, num_stages)
    composer.residents = dict.fromkeys(prompt(1, index) for index in range(residents))
    assert composer.max_decodes == most


def test_the_wait_follows_gaps_and_steps():
    composer = StepComposer(AUTOMATIC, 4)
    assert (composer.max_wait_s, composer.quiet_s) == (0.0, 0.0)
    composer.ran(0.032)
    assert composer.max_wait_s == pytest.approx(0.008)
    assert composer.quiet_s == pytest.approx(0.001)  # a 32nd of a step
    for _ in range(200):
        composer.arrived(11, 0.005)  # half a millisecond apart
    assert composer.quiet_s == pytest.approx(0.002)
    for _ in range(200):
        composer.arrived(2, 60.0)  # a gap, but no burst
    assert composer.quiet_s == composer.max_wait_s


def test_what_is_given_goes_before_what_is_measured():
    composer = StepComposer(StepLimits(max_decodes=3, max_wait_s=0.5), 4)
    composer.ran(0.032)
    assert (composer.max_decodes, composer.max_wait_s) == (3, 0.5)
    assert composer.prefill_tokens(1) > 10**9


def test_a_backlog_of_chunks_widens_the_step():
    composer = StepComposer(AUTOMATIC, 4)
    assert [composer.prefill_tokens(n) for n in (1, 3, 5, 6, 9)] == [100, 100, 100, 200, 300]


def test_decodes_and_chunks_take_turns_and_chunks_stay_in_order():
    node = scheduler(limits=StepLimits(max_prefill_tokens=4, max_decodes=2))
    first = streamed(12, 4, index=0)
    second = streamed(4, 4, index=1)
    decodes = [decode(20, index) for index in (2, 3, 4)]
    node.enter(0, Batch.of([*first, *second, *decodes]))
    # Four chunks wait: one goes at a time. Decodes go first.
    assert [step_of(node) for _ in range(8)] == [[2, 3], [0], [4], [0], [0], [1], None, None]


def test_chunks_end_with_the_last_layer_but_for_the_request():
    node = scheduler(num_llm_layers=1)
    chunks = streamed(200, 100)
    node.enter(0, Batch.of(chunks))
    leaving = []
    for _ in range(2):
        step = node.schedule()
        leaving.append(node.finish_pass(step, 0))
    assert leaving[0] is None
    assert leaving[1].requests == [chunks[-1]]
    assert list(node.composer.residents) == [chunks[-1]]
    node.release(chunks[-1])
    assert not node.composer.residents


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 30)), min_size=1, max_size=30),
    st.sampled_from([1, 3]),
)
def test_no_prompt_starves(arrivals, max_prompts):
    """However many decodes come, a prompt is through after twice as many steps as chunks ahead."""
    node = scheduler(max_prompts=max_prompts, num_llm_layers=1)
    waiting = 0
    for index, (num_tokens, num_decodes) in enumerate(arrivals):
        chunks = streamed(num_tokens, 100, index=index)
        node.enter(0, Batch.of(chunks))
        waiting += len(chunks)
        for _ in range(2):
            node.enter(0, Batch.of([decode(5, 1000 + n) for n in range(num_decodes)]))
            waiting -= sum(i < 1000 for i in step_of(node) or ())
    steps = 0
    while waiting:
        node.enter(0, Batch.of([decode(5, 2000)]))  # never without decodes
        waiting -= sum(index < 1000 for index in step_of(node))
        steps += 1
        assert steps <= 2 * sum(-(-tokens // 100) for tokens, _ in arrivals)
