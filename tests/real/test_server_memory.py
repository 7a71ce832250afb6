"""A server keeps nothing of requests that have ended, however many tokens it has served."""

from __future__ import annotations

import gc
from array import array
from collections import deque
from types import BuiltinFunctionType, FunctionType, ModuleType

import pytest
from live import Answer, check_all_end_right, running, submit, wait_for
from tiny_scenario import write_tiny_scenario

from helixreal.engines.emulated import made_up_token
from helixreal.inventory import NodeEntry

NOT_FOLLOWED = (type, ModuleType, FunctionType, BuiltinFunctionType, str, bytes, int, float)
SIZED = (list, dict, set, deque, array, tuple)
FEW = 60


def num_kept(*roots):
    """Number of values in all containers that objects lead to."""
    gc.collect()
    seen, count, todo = set(), 0, list(roots)
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, NOT_FOLLOWED):
            continue
        seen.add(id(each))
        if isinstance(each, SIZED):
            count += len(each)
        todo += gc.get_referents(each)
    return count


def serve_some(live, cluster, count=20):
    answers = [
        Answer([1] * length, 40, [made_up_token(length + i) for i in range(40)])
        for length in range(1, count + 1)
    ]
    for answer in answers:
        submit(live, answer)
    gone = Answer([1], 5000)
    number = submit(live, gone)
    wait_for(lambda: gone.tokens, "a token")
    live.cancel(number)
    submit(live, Answer([1] * 10, 10**6))  # refused
    check_all_end_right(answers)
    wait_for(lambda: not cluster.coordinator.active, "the end")


@pytest.mark.parametrize("node", ["prototype", "vllm"])
@pytest.mark.parametrize("keeps_run", [False, True])
def test_what_is_kept_does_not_grow_with_tokens(tmp_path, node, keeps_run):
    scenario = write_tiny_scenario(tmp_path, {"n0": [0, 8]}, scheduler={"node": node})
    overrides = ["physics=calibrated"]
    settings = {"time_scale": 10.0, "overrides": overrides, "keeps_run": keeps_run}
    with running(scenario, NodeEntry(), **settings) as (live, _, cluster):
        serve_some(live, cluster)
        before = num_kept(cluster, live)
        for _ in range(3):
            serve_some(live, cluster)
        grown = num_kept(cluster, live) - before
        served = cluster.dispatcher.num_output_tokens
    assert served > 4 * 20 * 40
    if keeps_run:
        assert grown > served  # what is not flat is seen
    else:
        assert grown < FEW


def test_counts_are_the_same_as_of_a_run(tmp_path):
    scenario = write_tiny_scenario(tmp_path, {"n0": [0, 8]}, scheduler={"node": "prototype"})
    loads = []
    for keeps_run in (False, True):
        with running(scenario, NodeEntry(), time_scale=10.0, keeps_run=keeps_run) as made:
            live, _, cluster = made
            serve_some(live, cluster, 3)
            load = live.load()
            loads.append((load.completed, load.prompt_tokens, load.refused, load.failed))
    assert loads[0] == loads[1]
    assert loads[0][0] == 3
