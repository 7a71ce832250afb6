"""Workers die, hang and come back while a real cluster of processes answers requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from live import PATIENCE_S, Answer, check_all_end_right, running, submit, wait_for

from helixreal.engines.emulated import made_up_token
from helixreal.inventory import NodeEntry
from helixreal.local import worker_command
from helixreal.serving.frontend import Failed, Finished, Refused

QUICK = ["scheduler.max_waiting=1000"]


def quickstart():
    return running("quickstart", NodeEntry(), time_scale=20.0, overrides=QUICK)


def made_up(prompt_tokens, count):
    """Token number i stands behind the prompt and i tokens of the answer."""
    return [made_up_token(prompt_tokens + i) for i in range(count)]


def ask(live, count, max_tokens=40):
    answers = []
    for number in range(count):
        prompt = list(range(5 + number % 50))
        answers.append(Answer(prompt, max_tokens, made_up(len(prompt), max_tokens)))
        submit(live, answers[-1])
    return answers


def test_a_killed_worker_with_another_beside_it():
    with quickstart() as (live, launch, cluster):
        answers = ask(live, 100)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 500, "some tokens")
        os.kill(launch.workers.pid("l4-pair-0"), signal.SIGKILL)
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts > 0
        assert not live.load().nodes_up["l4-pair-0"]
        check_all_end_right(ask(live, 10))


def test_a_hanging_worker_is_done_without():
    with quickstart() as (live, launch, cluster):
        answers = ask(live, 30)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 100, "some tokens")
        os.kill(launch.workers.pid("l4-pair-1"), signal.SIGSTOP)
        try:
            check_all_end_right(answers)
        finally:
            os.kill(launch.workers.pid("l4-pair-1"), signal.SIGCONT)
        assert cluster.coordinator.num_restarts > 0


def test_without_another_way_requests_end_with_an_error_until_the_node_is_back():
    with quickstart() as (live, launch, cluster):
        answers = ask(live, 20)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 50, "some tokens")
        os.kill(launch.workers.pid("a100-0"), signal.SIGKILL)
        for answer in answers:
            assert answer.is_over.wait(PATIENCE_S), "a request hangs"
            if answer.ends != [Finished("length")]:
                assert answer.ends == [Failed("a100-0 was lost")]
            assert answer.tokens == answer.expected[: len(answer.tokens)]
        assert not live.is_ready
        (refused,) = ask(live, 1)
        assert refused.is_over.wait(PATIENCE_S)
        assert isinstance(refused.ends[0], Refused)
        command = worker_command("a100-0", NodeEntry(), cluster.address)
        with subprocess.Popen([sys.executable, "-m", "helixreal", *command]) as again:
            wait_for(lambda: live.is_ready, "the node is back")
            check_all_end_right(ask(live, 10))
            live.stop()
            cluster.close()
            assert again.wait(PATIENCE_S) == 0


def test_a_cancelled_request_is_heard_of_no_more():
    with quickstart() as (live, _, cluster):
        answer = Answer([1, 2, 3], 2000)
        number = submit(live, answer)
        wait_for(lambda: answer.tokens, "a token")
        live.cancel(number)
        wait_for(lambda: not cluster.coordinator.active, "it is gone")
        heard = len(answer.tokens)
        check_all_end_right(ask(live, 3))
        assert not answer.ends
        assert len(answer.tokens) == heard


@pytest.mark.parametrize("stop", [0, 7])
def test_stop_tokens_end_an_answer(stop):
    with quickstart() as (live, _, _):
        answer = Answer([5] * 10, 50, made_up(10, 50))
        submit(live, answer, stop_tokens=frozenset({answer.expected[stop]}))
        assert answer.is_over.wait(PATIENCE_S)
        assert answer.ends == [Finished("stop")]
        assert answer.tokens == answer.expected[:stop]
