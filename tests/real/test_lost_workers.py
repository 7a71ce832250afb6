"""Workers die, hang and come back while a real cluster of processes answers requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from threading import Event

import pytest

from helixreal.engines.emulated import made_up_token
from helixreal.frontend import Failed, Finished, Generation, Refused, Token
from helixreal.inventory import NodeEntry
from helixreal.launch import Launch
from helixreal.live import LiveCluster, NobodyFeeds
from helixreal.local import worker_command

PATIENCE_S = 60
QUICK = ["scheduler.max_waiting=1000"]


class Answer:
    """What a listener has heard."""

    def __init__(self, prompt, max_tokens):
        self.prompt, self.max_tokens = prompt, max_tokens
        self.tokens = []
        self.ends = []
        self.is_over = Event()

    def __call__(self, happening):
        if isinstance(happening, Token):
            assert not self.ends
            self.tokens.append(happening.token)
        else:
            self.ends.append(happening)
            self.is_over.set()

    @property
    def expected(self):
        """Token number i stands behind the prompt and i tokens of the answer."""
        return [made_up_token(len(self.prompt) + i) for i in range(self.max_tokens)]


@contextmanager
def running(time_scale=20.0, overrides=()):
    launch = Launch.local(
        "quickstart", [*QUICK, *overrides], 0, NodeEntry(engine="emulated"), time_scale
    )
    with launch.cluster(feeder=NobodyFeeds()) as cluster:
        launch.gather(cluster)
        live = LiveCluster(cluster, "quickstart", 4096)
        live.start()
        try:
            yield live, launch, cluster
        finally:
            live.stop()


def ask(live, count, max_tokens=40):
    answers = []
    for number in range(count):
        answer = Answer(list(range(5 + number % 50)), max_tokens)
        live.submit(Generation(prompt=answer.prompt, max_tokens=max_tokens), answer)
        answers.append(answer)
    return answers


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


def check_all_end_right(answers):
    for answer in answers:
        assert answer.is_over.wait(PATIENCE_S), "a request hangs"
        assert answer.ends == [Finished("length")]
        assert answer.tokens == answer.expected


def test_a_killed_worker_with_another_beside_it():
    with running() as (live, launch, cluster):
        answers = ask(live, 100)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 500, "some tokens")
        os.kill(launch.workers.pid("l4-pair-0"), signal.SIGKILL)
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts > 0
        assert not live.load().nodes_up["l4-pair-0"]
        check_all_end_right(ask(live, 10))


def test_a_hanging_worker_is_done_without():
    with running() as (live, launch, cluster):
        answers = ask(live, 30)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 100, "some tokens")
        os.kill(launch.workers.pid("l4-pair-1"), signal.SIGSTOP)
        try:
            check_all_end_right(answers)
        finally:
            os.kill(launch.workers.pid("l4-pair-1"), signal.SIGCONT)
        assert cluster.coordinator.num_restarts > 0


def test_without_another_way_requests_end_with_an_error_until_the_node_is_back():
    with running() as (live, launch, cluster):
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
    with running() as (live, _, cluster):
        answer = Answer([1, 2, 3], 2000)
        number = live.submit(Generation(prompt=answer.prompt, max_tokens=2000), answer)
        wait_for(lambda: answer.tokens, "a token")
        live.cancel(number)
        wait_for(lambda: not cluster.coordinator.active, "it is gone")
        heard = len(answer.tokens)
        check_all_end_right(ask(live, 3))
        assert not answer.ends
        assert len(answer.tokens) == heard


@pytest.mark.parametrize("stop", [0, 7])
def test_stop_tokens_end_an_answer(stop):
    with running() as (live, _, _):
        answer = Answer([5] * 10, 50)
        live.submit(
            Generation(
                prompt=answer.prompt,
                max_tokens=50,
                stop_tokens=frozenset({answer.expected[stop]}),
            ),
            answer,
        )
        assert answer.is_over.wait(PATIENCE_S)
        assert answer.ends == [Finished("stop")]
        assert answer.tokens == answer.expected[:stop]
