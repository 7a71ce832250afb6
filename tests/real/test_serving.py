"""The HTTP endpoint over a real cluster of emulated workers, with the clients that people use."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import openai
import pytest
from live import running, wait_for
from prometheus_client.parser import text_string_to_metric_families
from serving import InProcess, Scripted, served
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.engines.emulated import made_up_token
from helixreal.inventory import NodeEntry
from helixreal.serving import Tokenizer
from helixreal.serving.frontend import Failed, Finished, Load, Refused, Token
from helixsim.errors import InputError

MODEL = "llama1-30b"


def made_up(prompt_tokens, count):
    return [made_up_token(prompt_tokens + i) for i in range(count)]


@pytest.fixture(scope="module")
def cluster():
    overrides = ["scheduler.max_waiting=20", "scheduler.kv.high_water_mark=0.1"]
    with running("quickstart", NodeEntry(), time_scale=50.0, overrides=overrides) as (live, *_):
        yield live


@pytest.fixture(scope="module")
def url(cluster):
    with served(cluster) as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


# -- with the openai package ---------------------------------------------------------------------


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_completion_of_token_ids(client):
    found = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=6)
    (sampling_params,) = found.choices
    assert sampling_params.token_ids == made_up(3, 6)
    assert sampling_params.text == " ".join(map(str, made_up(3, 6)))
    assert sampling_params.finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 6)


def test_several_prompts_several_times(client):
    found = client.completions.create(model=MODEL, prompt=[[1], [1, 2]], n=2, max_tokens=2)
    assert [sampling_params.index for sampling_params in found.choices] == [0, 1, 2, 3]
    assert [sampling_params.token_ids for sampling_params in found.choices] == [
        *[made_up(1, 2)] * 2,
        *[made_up(2, 2)] * 2,
    ]
    # As OpenAI and vLLM count: each prompt once.
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 8)


def test_a_stream_with_usage(client):
    stream = client.completions.create(
        model=MODEL,
        prompt=[5] * 4,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = list(stream)
    assert [t for part in parts for c in part.choices for t in c.token_ids] == made_up(4, 5)
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage.total_tokens == 9


def test_echo_and_stop_tokens(client):
    ends = made_up(2, 4)
    found = client.completions.create(
        model=MODEL, prompt=[7, 8], max_tokens=9, echo=True, extra_body={"stop_token_ids": ends[3:]}
    )
    assert found.choices[0].text == "7 8 " + " ".join(map(str, ends[:3]))
    assert found.choices[0].finish_reason == "stop"


def test_many_at_once_are_answered_or_told_to_come_again(url):
    async def ask(client, number):
        prompt = [1] * (1 + number % 40)
        try:
            found = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=30)
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1
            return None
        assert found.choices[0].token_ids == made_up(len(prompt), 30)
        return found

    async def load():
        settings = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 120}
        async with openai.AsyncOpenAI(**settings) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(150)))

    found = asyncio.run(load())
    answered = sum(each is not None for each in found)
    assert 0 < answered < len(found)


def test_metrics_count_what_was_served(url, client):
    client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=2)
    text = httpx.get(f"{url}/metrics").text
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["vllm:generation_tokens_total"] >= 2
    assert samples["vllm:request_queue_time_seconds_count"] >= 1
    assert samples["vllm:request_prompt_tokens_sum"] >= 3
    assert samples["vllm:time_to_first_token_seconds_count"] >= 1
    assert samples["helix_node_up"] == 1
    assert samples["vllm:num_requests_running"] == 0


def test_how_requests_have_finished_is_counted(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    says = [Token(token) for token in tokenizer.encode("one. two")]
    frontend = Scripted(*says, Finished("length"))
    frontend.load = lambda: Load(0, 0, 0.0, {}, 0, 0, 0, 0, 0)
    endpoint = InProcess(frontend, tokenizer)
    for stop in (".", ".", "never"):
        endpoint.post("/v1/completions", {"prompt": "x", "stop": stop})
    frontend.happenings = [Failed("n0 was lost")]
    endpoint.post("/v1/completions", {"prompt": "x"})
    found = {
        sample.labels["finished_reason"]: sample.value
        for family in text_string_to_metric_families(endpoint.get("/metrics").text)
        for sample in family.samples
        if sample.name == "vllm:request_success_total"
    }
    assert found == {"stop": 2, "length": 1, "error": 1, "abort": 0}


def test_a_chat_without_a_limit_of_its_answer(cluster, tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    endpoint = InProcess(cluster, tokenizer, max_model_len=60)
    found = endpoint.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
    ).json()
    assert found["usage"]["total_tokens"] == 60
    assert found["choices"][0]["finish_reason"] == "length"
    whole = InProcess(cluster).get("/v1/models").json()["data"][0]["max_model_len"]
    assert 1000 <= whole <= 8192


# -- words -----------------------------------------------------------------------------------------


def test_text_and_chat_with_a_tokenizer(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    says = tokenizer.encode("Grüße, 世界! stop it")
    frontend = Scripted(*map(Token, says), Finished("length"))
    with (
        served(frontend, tokenizer) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        found = client.completions.create(model="scripted", prompt="hello")
        assert found.choices[0].text == "Grüße, 世界! stop it"
        assert frontend.asked[-1].prompt == tokenizer.encode("hello")
        found = client.completions.create(model="scripted", prompt="x", stop=["sto", "zzz"])
        assert (found.choices[0].text, found.choices[0].finish_reason) == ("Grüße, 世界! ", "stop")
        assert frontend.cancelled == [2]
        messages = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)
        parts = [part.choices[0].delta.content for part in stream]
        assert "".join(parts) == "Grüße, 世界! stop it"
        assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts)
        asked = tokenizer.decode(frontend.asked[-1].prompt)
        assert asked == "user: hi\nassistant:"
        with pytest.raises(openai.BadRequestError, match="nobody may not speak"):
            client.chat.completions.create(
                model="scripted", messages=[{"role": "nobody", "content": ""}]
            )


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_has_as_many_events_as_tokens(tmp_path, number):
    """Benchmarks measure the time between events; the end is no event of its own."""
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    says = tokenizer.encode("no ü")
    here = InProcess(Scripted(*map(Token, says), Finished("length")), tokenizer)
    body = {"prompt": "x", "stream": True, "n": number}
    lines = here.post("/v1/completions", body).text.splitlines()[::2]
    *events, done = [line.removeprefix("data: ") for line in lines]
    choices = [json.loads(event)["choices"][0] for event in events]
    for index in range(number):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["token_ids"] for choice in own] == [[t] for t in says]
        ends = [choice["finish_reason"] for choice in own]
        assert ends == [None] * (len(says) - 1) + ["length"]
    assert done == "[DONE]"


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="there is no such file; give the tokenizer"):
        Tokenizer(tmp_path)


def test_a_model_without_a_chat_template(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path, chat=False))
    with served(Scripted(Finished("length")), tokenizer) as address:
        asked = {"messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "words"}, 400, "no tokenizer"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": [1], "temperature": "hot"}, 400, "temperature"),
        ({"prompt": [1], "logprobs": 30}, 400, "logprobs"),
        ({"prompt": [1], "model": "other"}, 404, "there is no model 'other'"),
        ({"prompt": [1] * 10, "max_tokens": 10**6}, 400, "together"),
        ({}, 400, "prompt"),
    ],
)
def test_bad_requests_get_one_clear_error(url, body, status, message):
    answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_no_json_and_one_that_is_too_long(url):
    assert httpx.post(f"{url}/v1/completions", content=b"{").status_code == 400
    too_long = json.dumps({"prompt": [1] * 6_000_000}).encode()
    assert httpx.post(f"{url}/v1/completions", content=too_long).status_code == 413


def test_failures_reach_the_client():
    with served(Scripted(Token(1), Failed("n0 was lost"))) as address:
        asked = {"prompt": [1], "max_tokens": 5}
        answer = httpx.post(f"{address}/v1/completions", json=asked)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "n0 was lost")
        streamed = httpx.post(f"{address}/v1/completions", json=asked | {"stream": True})
        events = [line for line in streamed.text.splitlines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "n0 was lost"
        assert events[-1] == "data: [DONE]"


def test_refusals_come_before_a_stream_begins():
    with served(Scripted(Refused("full", 2.3))) as address:
        asked = {"prompt": [1], "stream": True}
        answer = httpx.post(f"{address}/v1/completions", json=asked)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_cancelled_when_its_client_disconnects(stream):
    frontend = Scripted(Token(1))  # and then nothing for ever
    with served(frontend) as address:
        body = json.dumps({"prompt": [1], "stream": stream}).encode()
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as leaving:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            leaving.sendall(head.encode() + body)
            wait_for(lambda: frontend.asked, "the request")
        wait_for(lambda: frontend.cancelled == [1], "it is given up")


def test_keys():
    with served(Scripted(Finished("length")), api_key="secret") as address:
        assert httpx.get(f"{address}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{address}/health").status_code == 200
