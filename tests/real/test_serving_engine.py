"""The endpoint over an engine that makes real tokens: texts are weighed, choices differ."""

from __future__ import annotations

import pytest
from live import running
from serving import InProcess
from tiny_scenario import write_tiny_scenario
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.inventory import NodeEntry
from helixreal.serving import Tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer(write_tiny_tokenizer(model))


@pytest.fixture(scope="module")
def endpoint(model, tokenizer, tmp_path_factory):
    entry = NodeEntry(engine="torch", model=str(model), kv_memory_bytes=16 << 20)
    scenario = write_tiny_scenario(tmp_path_factory.mktemp("scenario"))
    with running(scenario, entry) as (live, *_):
        yield InProcess(live, tokenizer)


def complete(endpoint, **body):
    answer = endpoint.post("/v1/completions", {"prompt": PROMPT, "ignore_eos": True} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def test_a_text_is_weighed_as_hugging_face_weighs_it(endpoint, model, tokenizer):
    """As lm-eval asks for it: the log probability of each token of the prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    (choice,) = complete(endpoint, echo=True, max_tokens=1, logprobs=1, temperature=0)
    tokens = tokenizer.encode(PROMPT) + choice["token_ids"]
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = whole(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None
    own = [float(expected[at][token]) for at, token in enumerate(tokens[1:])]
    assert found[1:] == pytest.approx(own, abs=2e-4)
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:]]
    assert best == pytest.approx([float(row.max()) for row in expected[:-1]], abs=2e-4)


def test_choices_with_a_seed_differ_and_repeat(endpoint):
    first, again = (
        [each["token_ids"] for each in complete(endpoint, n=4, seed=7, max_tokens=12)]
        for _ in range(2)
    )
    assert first == again
    assert len({tuple(tokens) for tokens in first}) == 4
    other = [each["token_ids"] for each in complete(endpoint, n=4, seed=70, max_tokens=12)]
    assert not any(tokens in first for tokens in other)


def test_a_temperature_of_almost_zero_is_greedy(endpoint):
    greedy = complete(endpoint, temperature=0, max_tokens=12)
    assert complete(endpoint, temperature=1e-50, max_tokens=12) == greedy
    assert complete(endpoint, top_k=1, max_tokens=12) == greedy


def test_penalties_and_biases_change_the_answer(endpoint):
    plain = complete(endpoint, temperature=0, max_tokens=40)[0]["token_ids"]
    wide = complete(endpoint, temperature=0, max_tokens=40, presence_penalty=2, frequency_penalty=2)
    assert len(set(wide[0]["token_ids"])) > len(set(plain))
    bias = {str(plain[0]): -100}
    assert complete(endpoint, temperature=0, logit_bias=bias)[0]["token_ids"][0] != plain[0]


def test_an_answer_of_at_least_some_tokens(endpoint, tokenizer):
    plain = complete(endpoint, temperature=0, max_tokens=10)[0]["token_ids"]
    body = {"temperature": 0, "max_tokens": 10, "stop_token_ids": [plain[0]]}
    (at_once,) = complete(endpoint, **body)
    assert (at_once["token_ids"], at_once["finish_reason"]) == ([], "stop")
    (later,) = complete(endpoint, min_tokens=5, **body)
    assert len(later["token_ids"]) >= 5
    assert plain[0] not in later["token_ids"][:5]


def test_tokens_that_the_model_does_not_have_are_refused(endpoint):
    for prompt in ([256], [2**31 - 1]):
        answer = endpoint.post("/v1/completions", {"prompt": prompt})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"
