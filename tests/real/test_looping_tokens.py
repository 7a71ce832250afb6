"""Real engines whose decodes loop give the tokens that one engine alone gives."""

from __future__ import annotations

import os
import signal

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve
from live import Answer, check_all_end_right, check_scores, running, submit, wait_for
from test_looping_clusters import PLACEMENTS, check_idle
from tiny_scenario import write_engine, write_tiny_scenario

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Sampling
from helixreal.inventory import NodeEntry
from helixreal.serving.frontend import Finished

# vLLM and torch warn of things of their own as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS = PLACEMENTS | {"one node": {"n0": [0, 8]}}
NUM_OUTPUT = 24
SHARED = prompts([70], seed=5)[0]
PROMPTS = [
    *prompts([1, 7, 90, 33, 64]),
    *(SHARED + more for more in prompts([1, 5, 30, 2, 20], seed=6)),
    SHARED[:64],  # whole blocks: all of it may be found
    SHARED[:65],
]
DRAWN = Sampling(temperature=0.8, top_p=0.9, seed=11)
PENALIZED = Sampling(
    temperature=0.8, seed=11, repetition_penalty=1.3, presence_penalty=0.3, logprobs=2
)
"""Its tokens depend on all tokens before them, also after a restart."""
SCORED = Sampling(logprobs=0, prompt_logprobs=2)
SAMPLINGS = (GREEDY, DRAWN, PENALIZED, SCORED)


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
    """Sampling -> what one engine alone makes of each prompt."""
    whole = make_engine(engine, make_specs(model, [(0, 8)])[0])
    found = {}
    for sampling in SAMPLINGS:
        jobs = [
            Job(prompt, NUM_OUTPUT, route=((0, 0, 8),), sampling=sampling) for prompt in PROMPTS
        ]
        serve([whole], jobs)
        found[sampling] = jobs
    whole.close()
    return found


def cluster_of(
    engine, model, folder, placement, *, standing=None, kv_memory_bytes=16 << 20, **costs
):
    """A cluster with the node scheduler `vllm`, and the engine costs given."""
    scenario = write_tiny_scenario(
        folder,
        LAYERS[placement],
        scheduler={"node": "vllm"},
        engine=write_engine(folder, **costs),
        physics="calibrated",
    )
    entry = NodeEntry(
        engine=engine, model=str(model), device=DEVICE, kv_memory_bytes=kv_memory_bytes
    )
    return running(scenario, entry, standing=standing)


def ask(live, expected, sampling=GREEDY):
    answers = []
    for job in expected[sampling]:
        answers.append(Answer(job.prompt, NUM_OUTPUT, job.tokens))
        submit(live, answers[-1], sampling=sampling)
    return answers


@pytest.mark.parametrize("placement", ["one stage", "three stages"])
def test_tokens_of_short_and_long_routes(engine, model, expected, tmp_path, standing, placement):
    with cluster_of(
        engine,
        model,
        tmp_path,
        placement,
        standing=standing,
        max_num_batched_tokens=48,
        max_num_seqs=6,
    ) as (live, _, cluster):
        for sampling in SAMPLINGS:
            answers = ask(live, expected, sampling)
            check_all_end_right(answers)
            for answer, job in zip(answers, expected[sampling], strict=True):
                if sampling.logprobs is not None:
                    check_scores(answer, job)
        check_idle(live, cluster)
        tokens = expected[GREEDY][2].tokens
        answer = Answer(expected[GREEDY][2].prompt, NUM_OUTPUT)
        submit(live, answer, stop_tokens=frozenset({tokens[9]}))
        assert answer.is_over.wait(60)
        assert answer.ends == [Finished("stop")]
        assert answer.tokens == tokens[: tokens.index(tokens[9])]
        check_idle(live, cluster)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_little_room_and_shared_prefixes(engine, model, expected, tmp_path, standing, is_enabled):
    """Requests are preempted, find their blocks again or do not, and give the same tokens."""
    with cluster_of(
        engine,
        model,
        tmp_path,
        "one node",
        standing=standing,
        kv_memory_bytes=2_500_000,
        enable_prefix_caching=is_enabled,
    ) as (live, _, cluster):
        answers = [
            answer
            for sampling in (GREEDY, DRAWN, PENALIZED)
            for answer in ask(live, expected, sampling)
        ]
        check_all_end_right(answers)
        check_idle(live, cluster)


def test_a_killed_worker(engine, model, expected, tmp_path, standing):
    with cluster_of(engine, model, tmp_path, "three stages", standing=standing) as (
        live,
        launch,
        cluster,
    ):
        answers = [
            answer
            for _ in range(2)
            for s in (GREEDY, PENALIZED)
            for answer in ask(live, expected, s)
        ]
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 60, "some tokens")
        os.kill(launch.workers.pid("n1"), signal.SIGKILL)
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts > 0
