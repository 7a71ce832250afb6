"""Clients that people use, against an endpoint; run it with pytest.

The packages are too large for every run of the tests; missing ones are skipped::

    pip install langchain-openai litellm instructor
    PYTHONPATH=.:tests/real python -m pytest -q tests/bench/clients.py

The first clients meet an endpoint whose answers are given. lm-eval and vLLM's benchmark meet
`helixreal serve` with the tiny Llama, and need torch, transformers and vLLM here. The command
`lm_eval` may be of another environment in the path (`pip install 'lm_eval[api]' transformers`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import openai
import pytest
import yaml
from pydantic import BaseModel
from serve_process import serving
from serving import Scripted, served
from tiny_scenario import write_tiny_scenario
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.engines.engine import Scores, TokenScore
from helixreal.serving import Tokenizer
from helixreal.serving.frontend import Finished, Token

pytestmark = pytest.mark.filterwarnings("ignore")


class Person(BaseModel):
    """What a structured answer is read into."""

    name: str
    age: int


@pytest.fixture
def endpoint(tmp_path):
    """(what to say, list of requests) -> address; the tokenizer's end token is byte 2."""
    folder = write_tiny_tokenizer(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    tokenizer = Tokenizer(folder)
    frontend = Scripted(vocabulary=256)

    def says(text):
        frontend.happenings = [
            *(Token(t, scores=Scores(TokenScore(t, -0.5, 1))) for t in tokenizer.encode(text)),
            Finished("stop"),
        ]
        return frontend

    with served(frontend, tokenizer) as url:
        yield f"{url}/v1", says


def test_langchain(endpoint):
    langchain = pytest.importorskip("langchain_openai")
    url, says = endpoint
    frontend = says("Hello there")
    chat = langchain.ChatOpenAI(base_url=url, api_key="none", model="scripted", seed=3)
    assert chat.invoke("hi").content == "Hello there"
    assert "".join(part.content for part in chat.stream("hi")) == "Hello there"
    found = chat.bind(logprobs=True).invoke("hi")
    assert len(found.response_metadata["logprobs"]["content"]) == len("Hello there")
    assert frontend.asked[0].sampling.seed == 3
    says('{"name": "Ann", "age": 7}')
    structured = chat.with_structured_output(Person, method="json_schema")
    assert structured.invoke("hi") == Person(name="Ann", age=7)
    assert frontend.asked[-1].sampling.grammar


def test_litellm(endpoint):
    litellm = pytest.importorskip("litellm")
    url, says = endpoint
    frontend = says("Hello there")
    settings = {"model": "openai/scripted", "api_base": url, "api_key": "none"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    found = litellm.completion(messages=messages, n=2, seed=7, **settings)
    assert [choice.message.content for choice in found.choices] == ["Hello there"] * 2
    assert [each.sampling.seed for each in frontend.asked] == [7, 8]
    parts = litellm.completion(messages=messages, stream=True, **settings)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello there"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(litellm.BadRequestError, match="only 'text'"):
        litellm.completion(messages=image, **settings)


def test_instructor(endpoint):
    instructor = pytest.importorskip("instructor")
    url, says = endpoint
    frontend = says('{"name": "Ann", "age": 7}')
    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    messages = [{"role": "user", "content": "hi"}]
    found = client.chat.completions.create(
        model="scripted", messages=messages, response_model=Person
    )
    assert (found.name, found.age) == ("Ann", 7)
    assert frontend.asked[0].sampling.grammar


def test_openai_parses(endpoint):
    url, says = endpoint
    says('{"name": "Ann", "age": 7}')
    with openai.OpenAI(base_url=url, api_key="none") as client:
        found = client.chat.completions.parse(
            model="scripted", messages=[{"role": "user", "content": "hi"}], response_format=Person
        )
    assert found.choices[0].message.parsed == Person(name="Ann", age=7)


QUESTIONS = [
    {"question": "What is red?", "choices": ["a rose", "the sky", "Grün"], "answer": 0},
    {"question": "What is cold?", "choices": ["fire", "ice"], "answer": 1},
    {"question": "Wo liegt Köln?", "choices": ["am Rhein", "an der Elbe", "é"], "answer": 0},
    {"question": "When?", "choices": ["now", "^+", "^-", "aa", "bb"], "answer": 1},  # ^+ is greedy
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny Llama with a tokenizer that transformers reads, too."""
    pytest.importorskip("torch")
    from tiny_llama import write_tiny_llama

    folder = write_tiny_tokenizer(write_tiny_llama(tmp_path_factory.mktemp("tiny")))
    config = folder / "tokenizer_config.json"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "A", "eos_token": "#"}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


@pytest.fixture(scope="module")
def llama_url(model, tmp_path_factory):
    """The address of `helixreal serve` with the tiny Llama on two nodes; its name is "tiny"."""
    scenario = write_tiny_scenario(tmp_path_factory.mktemp("scenario"))
    engine = ("--engine", "torch", "--model", str(model), "--served-model-name", "tiny")
    with serving(scenario, "--local", *engine) as (_, client):
        yield str(client.base_url).rstrip("/")


def run(*command):
    """Run a client that may download nothing; what it has written is shown when it fails."""
    found = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    return found.stdout


@pytest.fixture(scope="module", params=["tokens-1", "tokens-4", "text-1"])
def samples(request, llama_url, model, tmp_path_factory):
    """Samples of lm-eval by task: prompts as token ids or as text, one or several a request."""
    command = shutil.which("lm_eval") or pytest.skip("there is no lm_eval")
    kind, batch = request.param.split("-")
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "test_split": "test"}
        data["dataset_kwargs"] = {"data_files": {"test": str(folder / "data.jsonl")}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | data | task))
    settings = (
        f"model=tiny,base_url={llama_url}/v1/completions,tokenizer={model},max_length=512,"
        f"tokenized_requests={kind == 'tokens'},num_concurrent=2"
    )
    run(
        *(command, "run", "--model", "local-completions", "--model_args", settings),
        *("--tasks", ",".join(TASKS), "--include_path", str(folder), "--batch_size", batch),
        *("--log_samples", "--output_path", str(folder / "out")),
    )
    found = {}
    for name in TASKS:
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(found[name]) == len(QUESTIONS)
    return found


@pytest.fixture(scope="module")
def hugging_face(model):
    """Hugging Face's model: the log probability of a text after another, and greedy answers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    llama = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    @torch.no_grad()
    def judge(context, text):
        before = tokenizer.encode(context, add_special_tokens=False) or [tokenizer.bos_token_id]
        after = tokenizer.encode(text, add_special_tokens=False)
        scores = llama(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        chosen = scores.log_softmax(-1)[range(len(after)), after]
        return chosen.sum().item(), scores.argmax(-1).tolist() == after

    @torch.no_grad()
    def continue_(context, count):
        tokens = tokenizer.encode(context, add_special_tokens=False)
        for _ in range(count):
            token = llama(torch.tensor([tokens])).logits[0, -1].argmax().item()
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
        return tokenizer.decode(tokens)[len(context) :]

    return judge, continue_


def test_lm_eval_weighs_as_hugging_face(samples, hugging_face):
    judge, _ = hugging_face
    kinds = set()
    for sample in samples["choices"]:
        choices = sample["doc"]["choices"]
        weighed = [each[0] for each in sample["resps"]]
        expected = [judge(sample["doc"]["question"], choice) for choice in choices]
        for (logprob, greedy), (theirs, is_greedy) in zip(weighed, expected, strict=True):
            assert float(logprob) == pytest.approx(theirs, abs=1e-3)
            assert greedy == str(is_greedy)
            kinds.add(is_greedy)
        best = max(range(len(choices)), key=lambda i: expected[i][0])
        assert sample["acc"] == (best == sample["doc"]["answer"])
    assert kinds == {True, False}


def test_lm_eval_weighs_whole_texts(samples, hugging_face):
    judge, _ = hugging_face
    for sample in samples["rolling"]:
        expected, _ = judge("", sample["doc"]["question"])
        assert float(sample["resps"][0][0]) == pytest.approx(expected, abs=1e-3)


def test_lm_eval_generates(samples, hugging_face):
    _, continue_ = hugging_face
    for sample in samples["answers"]:
        assert sample["resps"][0][0] == continue_(sample["doc"]["question"], 8)


BENCHMARK = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`; builds of vLLM for CPUs lack packages that the command itself imports."""


@pytest.mark.parametrize(
    ("backend", "path", "more"),
    [
        ("openai", "/v1/completions", ()),
        ("openai", "/v1/completions", ("--logprobs", "2", "--temperature", "0")),
        ("openai-chat", "/v1/chat/completions", ("--temperature", "0.7", "--top-p", "0.9")),
    ],
)
def test_benchmark_of_vllm(llama_url, model, tmp_path, backend, path, more):
    if find_spec("vllm") is None:
        pytest.skip("there is no vLLM")
    run(
        *(sys.executable, "-c", BENCHMARK, "--backend", backend, "--endpoint", path),
        *("--base-url", llama_url, "--model", "tiny", "--tokenizer", str(model)),
        *("--dataset-name", "random", "--random-input-len", "24", "--random-output-len", "9"),
        *("--num-prompts", "12", "--request-rate", "20", "--ignore-eos", *more),
        *("--save-result", "--save-detailed", "--result-dir", str(tmp_path)),
        *("--result-filename", "found.json"),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["failed"], set(found["errors"])) == (12, 0, {""})
    assert found["output_lens"] == [9] * 12
    assert found["total_output_tokens"] == 12 * 9
    assert min(found["input_lens"]) >= 24
    assert found["total_input_tokens"] == sum(found["input_lens"])
    assert [len(times) for times in found["itls"]] == [8] * 12  # an event for each token
    assert all(0 < first < 60 for first in found["ttfts"])
    assert found["median_ttft_ms"] > 0 < found["median_tpot_ms"]
    assert found["output_throughput"] == pytest.approx(12 * 9 / found["duration"])
