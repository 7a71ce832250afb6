"""Batches and the queues that they are taken from."""

from __future__ import annotations

import pytest
from builders import capacity, decode, prompt

from helixsim.control.node_schedulers.paper import BatchQueue
from helixsim.steps import Batch

LONGEST = 1000


def queue_of(requests, **limits):
    queue = BatchQueue(capacity(**limits))
    queue.add(Batch.of(list(requests)))
    return queue


def indices(batch):
    return [request.index for request in batch.requests]


def figures(batch):
    return len(batch.requests), batch.num_prompts, batch.prompt_tokens


def test_a_batch_counts_prompts_and_their_tokens():
    batch = Batch.of([prompt(5, 0), decode(70, 1), prompt(8, 2), decode(90, 3)])
    assert figures(batch) == (4, 2, 13)
    assert batch.num_tokens == 15


def test_a_part_counts_anew():
    requests = [prompt(5, 0), decode(70, 1), prompt(8, 2)]
    assert figures(Batch.of(requests).part(requests[1:])) == (2, 1, 8)
    assert figures(Batch.of(requests[1:2]).part(requests[1:2])) == (1, 0, 0)


def test_everything_runs_at_once_if_it_fits():
    queue = queue_of([prompt(5, 0), decode(7, 1)])
    queue.add(Batch.of([prompt(6, 2)]))
    assert len(queue) == 3
    batch = queue.take(LONGEST)
    assert indices(batch) == [0, 1, 2]
    assert figures(batch) == (3, 2, 11)
    assert len(queue) == 0
    assert queue.waiting is None


@pytest.mark.parametrize(
    ("requests", "limits", "taken", "left"),
    [
        ([prompt(1, i) for i in range(5)], {"max_prompts": 3}, [0, 1, 2], [3, 4]),
        (
            # 60 + 30 fit 100, 20 more do not, but the 10 behind them do.
            [prompt(60, 0), prompt(30, 1), prompt(20, 2), prompt(10, 3)],
            {"max_prompt_tokens": 100},
            [0, 1, 3],
            [2],
        ),
        ([decode(9, i) for i in range(4)], {"max_decode_tokens": 3}, [0, 1, 2], [3]),
        (
            [decode(60, 0), decode(50, 1), decode(40, 2), decode(1, 3)],
            {"max_decode_context": 100},
            [0, 2],
            [1, 3],
        ),
        (
            # What is full for prompts is not for decodes, and the other way round.
            [prompt(5, 0), prompt(5, 1), decode(5, 2), decode(5, 3), prompt(5, 4)],
            {"max_prompts": 1, "max_decode_tokens": 1},
            [0, 2],
            [1, 3, 4],
        ),
    ],
    ids=["prompts", "prompt tokens", "decodes", "decode context", "both"],
)
def test_what_does_not_fit_is_passed_over(requests, limits, taken, left):
    queue = queue_of(requests, **limits)
    assert indices(queue.take(LONGEST)) == taken
    assert indices(queue.waiting) == left


@pytest.mark.parametrize(
    ("requests", "limits"),
    [
        ([prompt(50, 0), prompt(50, 1)], {"max_prompt_tokens": 100, "max_prompts": 2}),
        ([decode(50, 0), decode(50, 1)], {"max_decode_context": 100, "max_decode_tokens": 2}),
    ],
)
def test_a_limit_may_be_reached(requests, limits):
    queue = queue_of(requests, **limits)
    assert indices(queue.take(LONGEST)) == [0, 1]
    assert queue.waiting is None


def test_contexts_are_counted_only_where_they_might_not_fit():
    # Two contexts of at most 50 always fit 100; the longest that may come is what counts.
    queue = queue_of([decode(60, 0), decode(60, 1)], max_decode_context=100)
    assert indices(queue.take(60)) == [0]


def test_prompts_have_no_context_yet():
    queue = queue_of([prompt(90, 0), decode(90, 1)], max_decode_context=100)
    assert indices(queue.take(LONGEST)) == [0, 1]


def test_running_totals_stay_right():
    queue = queue_of(
        [prompt(60, 0), decode(9, 1), prompt(70, 2), decode(9, 3), prompt(40, 4)],
        max_prompt_tokens=100,
        max_decode_tokens=1,
    )
    first = queue.take(LONGEST)
    assert (indices(first), figures(first)) == ([0, 1, 4], (3, 2, 100))
    assert figures(queue.waiting) == (2, 1, 70)
    queue.add(Batch.of([prompt(30, 5), decode(9, 6)]))
    assert figures(queue.waiting) == (4, 2, 100)
    second = queue.take(LONGEST)
    assert (indices(second), figures(second)) == ([2, 3, 5], (3, 2, 100))
    assert figures(queue.waiting) == (1, 0, 0)
    assert indices(queue.take(LONGEST)) == [6]
    assert queue.waiting is None


def test_requests_that_were_left_go_before_those_that_come_later():
    queue = queue_of([decode(1, 0), decode(1, 1)], max_decode_tokens=1)
    queue.take(LONGEST)
    queue.add(Batch.of([decode(1, 2)]))
    assert indices(queue.waiting) == [1, 2]
