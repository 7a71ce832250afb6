"""Clusters of processes whose decodes loop: every token comes once, whatever happens."""

from __future__ import annotations

import os
import signal

import pytest
from live import Answer, check_all_end_right, running, submit, wait_for
from test_lost_workers import made_up
from tiny_scenario import write_engine, write_tiny_scenario

from helixreal.inventory import NodeEntry
from helixreal.serving.frontend import Finished

PLACEMENTS = {
    "one stage": {"n0": [0, 8], "n1": [0, 8]},
    "two stages": {"n0": [0, 4], "n1": [4, 8], "n2": [0, 4], "n3": [4, 8]},
    "three stages": {"n0": [0, 3], "n1": [3, 6], "n2": [6, 8], "n3": [3, 6]},
    # Routes begin at n1, and lead through it from n0.
    "overlap": {"n0": [0, 4], "n1": [0, 8]},
}
LONE = {"one stage": "n0", "two stages": "n1", "three stages": "n1", "overlap": "n0"}
"""A node that another can stand in for."""


@pytest.fixture(params=PLACEMENTS)
def placement(request):
    return request.param


def cluster_of(placement, folder, **settings):
    scenario = write_tiny_scenario(
        folder,
        PLACEMENTS[placement],
        scheduler={"node": "vllm"} | ({"policy": "random"} if placement == "overlap" else {}),
        **settings,
    )
    # The physics with engines; steps of 0.2 ms and longer.
    return running(scenario, NodeEntry(), overrides=["physics=calibrated"])


def ask(live, count, max_tokens=40, **settings):
    answers = []
    for number in range(count):
        prompt = list(range(1 + number % 30))
        answers.append(Answer(prompt, max_tokens, made_up(len(prompt), max_tokens)))
        submit(live, answers[-1], **settings)
    return answers


def check_idle(live, cluster):
    """No node holds blocks or requests any more."""
    wait_for(lambda: not cluster.coordinator.active, "all have ended")
    for worker in cluster.membership.workers:
        wait_for(lambda w=worker: not w.kv_used_token_layers, "blocks are free")


def test_answers_have_as_many_tokens_as_asked_for(placement, tmp_path):
    with cluster_of(placement, tmp_path) as (live, _, cluster):
        answers = [*ask(live, 40), *ask(live, 10, max_tokens=1), *ask(live, 10, max_tokens=2)]
        check_all_end_right(answers)
        check_idle(live, cluster)
        assert cluster.coordinator.num_restarts == 0
        cluster.coordinator.validate()
        check_log(cluster.events, answers)


def check_log(events, answers):
    """Each pass is in the log once, on its way out and back."""
    times, indices, directions, phases, positions, counts = events.table.values
    passes = {}
    for row in zip(indices, directions, phases, positions, counts, strict=True):
        assert row not in passes
        passes[row] = None
    for index, answer in enumerate(answers):
        expected = [("prompt", 0, len(answer.prompt))]
        first = len(answer.prompt)
        expected += [("decode", first + i, 1) for i in range(answer.max_tokens - 1)]
        for direction in ("out", "in"):
            found = [row[2:] for row in passes if row[:2] == (index, direction)]
            assert found == expected
        own = [at for at, each in zip(times, indices, strict=True) if each == index]
        assert own == sorted(own)


@pytest.mark.parametrize("stop", [0, 7])
def test_stop_tokens_end_an_answer(placement, stop, tmp_path):
    with cluster_of(placement, tmp_path) as (live, _, cluster):
        answers = []
        for _ in range(5):
            answer = Answer([5] * 10, 1000, made_up(10, 50))
            submit(live, answer, stop_tokens=frozenset({answer.expected[stop]}))
            answers.append(answer)
        for answer in answers:
            assert answer.is_over.wait(60)
            assert answer.ends == [Finished("stop")]
            assert answer.tokens == answer.expected[:stop]
        check_idle(live, cluster)
        check_all_end_right(ask(live, 10))


def test_a_cancelled_request_is_heard_of_no_more(placement, tmp_path):
    with cluster_of(placement, tmp_path) as (live, _, cluster):
        answer = Answer([1, 2, 3], 4000)
        number = submit(live, answer)
        others = ask(live, 5)
        wait_for(lambda: answer.tokens, "a token")
        live.cancel(number)
        check_all_end_right(others)
        check_idle(live, cluster)
        assert not answer.ends
        assert answer.tokens == made_up(3, len(answer.tokens))


def test_a_killed_worker(placement, tmp_path):
    with cluster_of(placement, tmp_path) as (live, launch, cluster):
        answers = ask(live, 60, max_tokens=400)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 500, "some tokens")
        os.kill(launch.workers.pid(LONE[placement]), signal.SIGKILL)
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts > 0
        check_all_end_right(ask(live, 10))


def test_too_little_room_for_all_at_once(placement, tmp_path):
    small = write_engine(tmp_path, kv_tokens=256, max_num_batched_tokens=24)
    with cluster_of(placement, tmp_path, engine=small) as (live, _, cluster):
        answers = ask(live, 40, max_tokens=60)
        check_all_end_right(answers)
        check_idle(live, cluster)
