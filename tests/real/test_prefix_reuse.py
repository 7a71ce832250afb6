"""Blocks that a prefix cache finds again change no token of a real engine."""

from __future__ import annotations

import pytest
from engine_driver import make_specs, prompts
from looping_driver import Served

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Sampling
from helixsim.physics.engine import EngineCosts

pytestmark = pytest.mark.filterwarnings("ignore")

NUM_OUTPUT = 20
SYSTEM = prompts([50], seed=5)[0]
PROMPTS = [
    *prompts([7, 33, 64]),
    *(SYSTEM + more for more in prompts([1, 5, 30, 2], seed=6)),
    SYSTEM[:32],  # whole blocks
    SYSTEM[:33],
    SYSTEM[:32],
]
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.9, top_p=0.95, seed=4),
    Sampling(repetition_penalty=1.5, frequency_penalty=0.4),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("vllm", marks=pytest.mark.vllm),
    ],
)
def engine(request, tmp_path_factory):
    from tiny_llama import write_tiny_llama

    model = write_tiny_llama(tmp_path_factory.mktemp("model"))
    (spec,) = make_specs(model, [(0, 8)], kv_memory_bytes=2 << 20)
    engine = make_engine(request.param, spec)
    yield engine
    engine.close()


def serve(engine, num_blocks, **costs):
    """Serve the prompts with this number of blocks of 16 tokens, none of them known before."""
    engine.kv.forget()
    engine.kv.num_hit_tokens = 0
    engine.kv.allocate("spare", engine.kv_blocks - num_blocks * 16 // engine.block_tokens)
    it = Served(engine, EngineCosts(**costs), 8)
    for key, prompt in enumerate(PROMPTS):
        sampling = SAMPLINGS[key % 3]
        it.ask(key, prompt, NUM_OUTPUT, sampling, at=3.0 * key, priority=key % 3)
    return it.run()


@pytest.mark.parametrize("async_scheduling", [True, False])
@pytest.mark.parametrize("scheduling", ["fcfs", "priority"])
@pytest.mark.parametrize("num_blocks", [16, 10])
def test_tokens_are_those_without_a_prefix_cache(engine, num_blocks, scheduling, async_scheduling):
    settings = {
        "max_num_batched_tokens": 40,
        "scheduling": scheduling,
        "async_scheduling": async_scheduling,
    }
    without = serve(engine, 16, enable_prefix_caching=False, **settings)
    assert engine.kv.num_hit_tokens == 0
    cached = serve(engine, num_blocks, **settings)
    assert cached.tokens == without.tokens
    assert all(len(tokens) == NUM_OUTPUT for tokens in cached.tokens.values())
    assert engine.kv.num_hit_tokens > 0
    if num_blocks == 10:
        assert sum(each.num_preemptions for each in cached.sequences.values()) > 0
