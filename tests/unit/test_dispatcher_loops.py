"""The dispatcher where decodes loop: a request leaves once, its tokens come in."""

from __future__ import annotations

import pytest
from builders import capacity
from test_dispatcher import CHAIN, TWO, live

from helixreal.engines.engine import Sampling
from helixreal.net import messages
from helixreal.serving.frontend import Finished, Token

pytestmark = pytest.mark.usefixtures("checked_runs")


def looping(layers=CHAIN, **settings):
    return live(layers, node="vllm", **settings)


def test_a_request_leaves_once_with_all_that_the_first_node_needs():
    under_test = looping(chunk=2)
    _, told = under_test.submit([7, 8, 9], 3, sampling=Sampling(temperature=0.5, seed=3))
    assert under_test.log == [("a", "prefill", 1, 0, [7, 8, 9])]
    (sent,) = under_test.transport.last.passes
    assert sent.answer == messages.Answer(3, 0, 0.0)
    assert sent.route == [messages.Stage(0, 0, 1), messages.Stage(1, 1, 2)]
    assert (sent.first, sent.sampling_params) == (
        0,
        Sampling(temperature=0.5, seed=3, prompt_tokens=3),
    )
    assert under_test.done(1.0, (1, 50)) == []
    assert under_test.done(2.0, (1, 51)) == []
    assert under_test.done(3.0, (1, 52)) == [("a", "drop", [1]), ("b", "drop", [1])]
    assert told == [Token(50), Token(51), Token(52), Finished("length")]
    under_test.coordinator.validate()


def test_several_tokens_of_a_request_come_in_order():
    under_test = looping()
    told = [under_test.submit([1], 3)[1], under_test.submit([2], 2)[1]]
    under_test.done(1.0, (1, 10), (2, 20), (1, 11), (1, 12), (2, 21))
    assert told == [
        [*map(Token, (10, 11, 12)), Finished("length")],
        [*map(Token, (20, 21)), Finished("length")],
    ]
    assert not under_test.coordinator.active
    rows = list(zip(*under_test.events.table.values, strict=True))
    for index, decodes in ((0, 2), (1, 1)):
        own = [row[2:] for row in rows if row[1] == index]
        expected = [("out", "prompt", 0, 1), ("in", "prompt", 0, 1)]
        for position in range(1, 1 + decodes):
            expected += [("out", "decode", position, 1), ("in", "decode", position, 1)]
        assert own == expected


def test_one_due_time_stands_for_all_tokens_of_a_message():
    under_test = looping()
    told = [under_test.submit([1], 2)[1], under_test.submit([2], 2)[1]]
    under_test.done(1.0, (1, 10), (2, 20), due_s=[1.5])
    assert told == [[], []]
    assert under_test.dispatcher.next_due_s() == 1.5
    under_test.dispatcher.process(1.5)
    assert told == [[Token(10)], [Token(20)]]


@pytest.mark.parametrize("first", [True, False])
def test_tokens_behind_a_stop_token_are_ignored(first):
    under_test = looping()
    _, told = under_test.submit([1, 2], 10, stop_tokens=frozenset({99}))
    if not first:
        under_test.done(1.0, (1, 50))
    drops = [("a", "drop", [1]), ("b", "drop", [1])]
    assert under_test.done(2.0, (1, 99), (1, 51), (1, 52))[-2:] == drops
    assert under_test.done(3.0, (1, 53)) == []
    assert told == [*([] if first else [Token(50)]), Finished("stop")]


def test_a_cancelled_request_is_dropped_at_its_nodes():
    under_test = looping()
    index, told = under_test.submit([1, 2], 10)
    under_test.done(1.0, (1, 50))
    under_test.dispatcher.cancel(index, 1.5)
    assert under_test.log == [("a", "drop", [1]), ("b", "drop", [1])]
    assert under_test.done(2.0, (1, 51)) == []
    assert told == [Token(50)]


def test_a_restarted_request_leaves_with_its_answer_so_far():
    under_test = looping(TWO)
    told = [under_test.submit([1, 2], 4)[1], under_test.submit([3, 4], 4)[1]]
    assert [name for name, *_ in under_test.log] == ["a", "b"]
    under_test.done(1.0, (1, 50), (2, 60), (1, 51))
    under_test.dispatcher.node_lost(0, 1.5)
    assert under_test.log == [("a", "drop", [1]), ("b", "prefill", 3, 0, [1, 2, 50, 51])]
    (sent,) = under_test.transport.last.passes
    assert sent.answer == messages.Answer(2, 0, 0.0)
    under_test.done(2.5, (1, 52), (3, 52), (2, 61))  # the first is of the attempt that is over
    under_test.done(3.0, (3, 53), (2, 62), (2, 63))
    assert told == [
        [*map(Token, (50, 51, 52, 53)), Finished("length")],
        [*map(Token, (60, 61, 62, 63)), Finished("length")],
    ]
    assert under_test.coordinator.num_restarts == 1


def test_a_request_that_a_later_node_preempts_is_restarted():
    under_test = looping(room=capacity(max_prompt_tokens=1))  # prompts are split by the nodes
    _, told = under_test.submit([1, 2], 2)
    under_test.done(1.0, (1, 50))
    under_test.dispatcher.requests_preempted([1], 1.5)
    assert under_test.log[-1] == ("a", "prefill", 2, 0, [1, 2, 50])
    under_test.done(2.0, (2, 51))
    assert told == [Token(50), Token(51), Finished("length")]


def test_a_message_that_was_lost_leaves_no_hole_in_an_answer(caplog):
    under_test = looping(waiting=9)
    _, told = under_test.submit([7], 5)
    under_test.done(1.0, (1, 50), number=1)
    under_test.log.clear()
    log = under_test.done(3.0, (1, 52), number=3)  # 51 was lost
    assert ("a", "prefill", 2, 0, [7, 50]) in [*under_test.log, *log]
    assert told == [Token(50)]
    assert caplog.messages == ["a message of b was lost"]
    under_test.done(4.0, (2, 51), number=4)
    assert told == [Token(50), Token(51)]
    under_test.dispatcher.worker_joined(1)  # a new worker counts anew
    under_test.done(5.0, (2, 52), number=1)
    assert told[2:] == [Token(52)]
