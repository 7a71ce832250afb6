"""Clusters of processes give the tokens that one engine alone gives, every one of them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve
from live import Answer, check_all_end_right, check_scores, running, submit, wait_for
from tiny_scenario import write_engine, write_tiny_scenario

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Sampling
from helixreal.inventory import NodeEntry

# vLLM and torch warn of things of their own as they are imported.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

NUM_OUTPUT = 24
OUT, BACK = ("out", "prompt"), ("in", "prompt")
LENGTHS = [1, 7, 90, 3, 33, 64, 12, 50]
PENALIZED = Sampling(
    temperature=0.8,
    seed=11,
    repetition_penalty=1.3,
    frequency_penalty=0.3,
    min_p=0.02,
    logprobs=2,
    prompt_logprobs=1,
)
"""Its tokens depend on all tokens before them, also after a restart."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("vllm", marks=pytest.mark.vllm),
    ],
)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(engine, model):
    """What one engine alone makes of each prompt, every second one with penalties."""
    whole = make_engine(engine, make_specs(model, [(0, 8)])[0])
    jobs = [
        Job(prompt, NUM_OUTPUT, route=((0, 0, 8),), sampling=(GREEDY, PENALIZED)[index % 2])
        for index, prompt in enumerate(prompts(LENGTHS))
    ]
    serve([whole], jobs)
    whole.close()
    return jobs


def entry(engine, model):
    return NodeEntry(engine=engine, model=str(model), device=DEVICE, kv_memory_bytes=16 << 20)


def ask(live, expected, pause_s=0.05):
    answers = []
    for job in expected:
        answers.append(Answer(job.prompt, NUM_OUTPUT, job.tokens))
        submit(live, answers[-1], sampling=job.sampling)
        time.sleep(pause_s)
    return answers


@pytest.mark.parametrize("policy", ["swarm", "random"])  # maximum flow needs one route only
def test_mixed_routes_and_partial_inference(engine, model, expected, tmp_path, standing, policy):
    scenario = write_tiny_scenario(tmp_path, scheduler={"policy": policy})
    with running(scenario, entry(engine, model), standing=standing) as (live, _, cluster):
        check_all_end_right(ask(live, expected))
        routes = {tuple(each["nodes"]) for each in cluster.events.routes}
        assert routes == {(1, 2, 0), (3, 2, 0)}  # n0 and n1, n2 and n1, and home


def test_chunked_prompts(engine, model, expected, tmp_path, standing):
    scenario = write_tiny_scenario(tmp_path, scheduler={"prefill_chunk_tokens": 16})
    with running(scenario, entry(engine, model), standing=standing) as (live, _, _):
        answers = ask(live, expected, pause_s=0.0)
        check_all_end_right(answers)
        for answer, job in list(zip(answers, expected, strict=True))[1::2]:
            check_scores(answer, job)


@pytest.mark.parametrize("preset", ["published", "tuned"])
@pytest.mark.parametrize("node", ["paper", "prototype"])
def test_presets_give_the_same_tokens(engine, model, expected, tmp_path, standing, preset, node):
    scenario = write_tiny_scenario(
        tmp_path,
        engine=write_engine(tmp_path),
        scheduler={
            "preset": preset,
            "policy": "swarm",
            "node": node,
            "prefill_chunk_tokens": 16,
            "max_waiting": 1000,
        },
    )
    with running(scenario, entry(engine, model), standing=standing) as (live, _, cluster):
        answers = ask(live, expected * 2, pause_s=0.01)
        check_all_end_right(answers)
        for answer, job in list(zip(answers, expected * 2, strict=True))[1::2]:
            check_scores(answer, job)
        passes = list(zip(*cluster.events.table.values, strict=True))
    out = Counter(query for _, query, way, phase, *_ in passes if (way, phase) == OUT)
    back = Counter(query for _, query, way, phase, *_ in passes if (way, phase) == BACK)
    assert max(out.values()) == 6, "prompts of 90 tokens leave in chunks"
    assert (out == back) == (preset == "published"), "only the last chunk of a stream comes back"


def test_a_killed_worker(engine, model, expected, tmp_path, standing):
    scenario = write_tiny_scenario(tmp_path)
    with running(scenario, entry(engine, model), standing=standing) as (live, launch, cluster):
        answers = ask(live, expected * 4, pause_s=0.0)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 60, "some tokens")
        os.kill(launch.workers.pid("n0"), signal.SIGKILL)
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts > 0


def test_too_little_room_for_all_at_once(engine, model, expected, tmp_path):
    scenario = write_tiny_scenario(
        tmp_path,
        scheduler={
            "kv": {"admission": "expected", "high_water_mark": 1.0, "expected_output_ratio": 0.05}
        },
    )
    small = replace(entry(engine, model), kv_memory_bytes=1_500_000)
    with running(scenario, small) as (live, _, cluster):
        answers = ask(live, expected * 3, pause_s=0.0)
        check_all_end_right(answers)
        for answer, job in list(zip(answers, expected * 3, strict=True))[1::2]:
            check_scores(answer, job)
        assert cluster.coordinator.num_restarts > 0, "no request was preempted"
