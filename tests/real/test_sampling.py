"""Sampling parameters act as in transformers and vLLM; log probabilities are exact."""

from __future__ import annotations

import pytest
from engine_driver import Job, make_specs, prompts, serve

from helixreal.engines import make_engine
from helixreal.engines.engine import Sampling

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

VOCABULARY = 50
COUNT = 4000
WHOLE = ((0, 0, 8),)
STAGES = ((0, 3), (3, 8))
THROUGH_STAGES = ((0, 0, 3), (1, 3, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def logits():
    import torch

    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3


def choose(logits, sampling, context, count=1):
    """Tokens after a context; draws differ by their position."""
    from helixreal.engines.sampling import choose_tokens

    return [
        choose_tokens(logits, [sampling], [len(context) + place], [context])[0]
        for place in range(count)
    ]


def processed(logits, context, *processors):
    """Logits after processors of transformers."""
    import torch

    ids = torch.tensor([context])
    for processor in processors:
        logits = processor(ids, logits.clone())
    return logits


# -- penalties -------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.5, 1.3, 8.0])
def test_the_repetition_penalty_is_that_of_transformers(logits, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    from helixreal.engines.sampling import _adjusted

    context = [*logits[0].topk(6).indices.tolist(), 3, 3, 7]
    sampling = Sampling(repetition_penalty=penalty, prompt_tokens=4)
    found = _adjusted(logits, [sampling], [len(context)], [context])
    expected = processed(logits, context, RepetitionPenaltyLogitsProcessor(penalty))
    assert found.tolist() == expected.tolist()


def test_presence_and_frequency_count_the_answer_only(logits):
    from helixreal.engines.sampling import _adjusted

    context = [1, 2, 2, 5, 5, 5, 9]
    sampling = Sampling(presence_penalty=0.7, frequency_penalty=0.25, prompt_tokens=3)
    change = _adjusted(logits, [sampling], [len(context)], [context]) - logits
    expected = [0.0] * VOCABULARY
    expected[5], expected[9] = -0.7 - 3 * 0.25, -0.7 - 0.25
    assert change[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_biases_move_logits(logits):
    best, second = logits[0].topk(2).indices.tolist()
    assert choose(logits, Sampling(logit_bias=((best, -100.0),)), [1]) == [second]
    assert choose(logits, Sampling(logit_bias=((7, 100.0), (8, 50.0))), [1]) == [7]


def test_stop_tokens_wait_for_the_least_number_of_tokens(logits):
    best, second = logits[0].topk(2).indices.tolist()
    sampling = Sampling(min_tokens=3, stop_tokens=(best, 10**6), prompt_tokens=2)
    assert choose(logits, sampling, [1, 1], 4) == [second] * 3 + [best]


def test_the_given_logits_stay_as_they_are(logits):
    before = logits.clone()
    choose(logits, Sampling(repetition_penalty=2.0, logit_bias=((1, 5.0),)), [1, 2])
    assert logits.equal(before)


# -- draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.7},
        {"min_p": 0.05, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_draws_follow_the_probabilities_of_transformers(logits, settings):
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    from helixreal.engines.sampling import choose_tokens

    sampling = Sampling(**({"temperature": 1.0, "seed": 3} | settings))
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.min_p:  # vLLM's order: before the others
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = processed(logits, [1], *warpers).softmax(dim=-1)[0]
    chosen = choose_tokens(logits.expand(COUNT, -1), [sampling] * COUNT, range(COUNT))
    shares = torch.bincount(torch.tensor(chosen), minlength=VOCABULARY) / COUNT
    assert set(chosen) == set(expected.nonzero()[:, 0].tolist())
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.03)


@pytest.mark.parametrize("temperature", [1e-50, 1e-38, 9e-6, 1e-5, 1e-3])
def test_tiny_temperatures_take_the_most_probable(logits, temperature):
    sampling = Sampling(temperature=temperature, seed=0)
    assert set(choose(logits, sampling, [1], 20)) == {int(logits.argmax())}


def test_rows_with_parameters_leave_their_neighbours_alone(logits):
    from helixreal.engines.sampling import choose_tokens

    rows = logits.expand(4, -1)
    plain = Sampling(temperature=1.0, seed=5)
    samplings = [plain, Sampling(temperature=1.0, seed=5, top_k=1), plain, Sampling(min_p=0.9)]
    mixed = choose_tokens(rows, samplings, [9, 9, 10, 11])
    alone = choose_tokens(rows[:2], [plain, plain], [9, 10])
    assert [mixed[0], mixed[2]] == alone
    assert mixed[1] == mixed[3] == int(logits.argmax())


# -- log probabilities -----------------------------------------------------------------------


def hugging_face_logprobs(model, tokens):
    """The log probabilities of all tokens of the vocabulary at each position."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return whole(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)


@pytest.mark.parametrize("name", ["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
@pytest.mark.parametrize("chunk", [10**6, 7])
def test_log_probabilities_are_those_of_hugging_face(model, name, chunk):
    sampling = Sampling(temperature=0.8, seed=2, top_k=9, logprobs=3, prompt_logprobs=2)
    jobs = [Job(prompt, 6, 0, WHOLE, sampling) for prompt in prompts([1, 40, 90])]
    engine = make_engine(name, make_specs(model, [(0, 8)])[0])
    try:
        serve([engine], jobs, chunk=chunk)
    finally:
        engine.close()
    for job in jobs:
        expected = hugging_face_logprobs(model, job.ids)
        scores = job.prompt_scores + job.scores
        assert [score.token for score in scores] == job.ids[1:]
        assert len(job.prompt_scores) == len(job.prompt) - 1
        for at, score in enumerate(scores):
            number = 2 if at < len(job.prompt) - 1 else 3
            values, ids = expected[at].topk(number)
            assert score.logprob == pytest.approx(float(expected[at][score.token]), abs=2e-4)
            assert [token for token, _ in score.top] == ids.tolist()
            assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=2e-4)
            assert score.rank == 1 + int((expected[at] > expected[at][score.token]).sum())


def test_penalties_do_not_depend_on_the_split(model):
    sampling = Sampling(
        temperature=0.9, seed=4, repetition_penalty=1.4, frequency_penalty=0.4, min_p=0.01
    )
    found = []
    for layers, route, chunk in (([(0, 8)], WHOLE, 10**6), (STAGES, THROUGH_STAGES, 16)):
        engines = [make_engine("torch", spec) for spec in make_specs(model, layers)]
        jobs = [Job(prompt, 12, 0, route, sampling) for prompt in prompts([3, 40])]
        found.append(serve(engines, jobs, chunk=chunk))
        for engine in engines:
            engine.close()
    assert found[0] == found[1]
