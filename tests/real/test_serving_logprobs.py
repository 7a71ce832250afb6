"""Log probabilities and sampling parameters, as clients ask for them and get them."""

from __future__ import annotations

import openai
import pytest
from live import running, wait_for
from serving import InProcess, Scripted, error_of, served
from tiny_scenario import write_engine, write_tiny_scenario
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.engines.emulated import made_up_token
from helixreal.engines.engine import Sampling, Scores, TokenScore
from helixreal.inventory import NodeEntry
from helixreal.serving import Tokenizer
from helixreal.serving.frontend import Finished, Token

END = Finished("length")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def scripted(tokenizer):
    """A front end that answers ``ok`` to the prompt ``ab``, with log probabilities."""
    _, b, o, k, x = tokenizer.encode("abokx")
    prompt = [TokenScore(b, -0.5, 2, ((x, -0.25),))]
    return Scripted(
        Token(o, scores=Scores(TokenScore(o, -0.125, 1, ((o, -0.125), (x, -3.0))), prompt)),
        Token(k, scores=Scores(TokenScore(k, float("-inf"), 9, ((x, -0.0),)))),
        END,
    )


def test_a_completion_with_log_probabilities(scripted, tokenizer):
    with served(scripted, tokenizer) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        found = client.completions.create(model="scripted", prompt="ab", logprobs=2)
        client.close()
    (choice,) = found.choices
    assert choice.text == "ok"
    assert choice.logprobs.tokens == ["o", "k"]
    assert choice.logprobs.token_logprobs == [-0.125, -9999.0]
    assert choice.logprobs.top_logprobs == [{"o": -0.125, "x": -3.0}, {"k": -9999.0, "x": 0.0}]
    assert choice.logprobs.text_offset == [0, 1]
    sampling = scripted.asked[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (2, None)


def test_the_most_probable_of_tokens_that_are_written_alike(tokenizer):
    """Parts of characters are: lm-eval takes a token for the best if its value is the highest."""
    first, second, third = [tokenizer.encode(letter)[0] for letter in "éЖ世"]
    score = TokenScore(first, -0.5, 1, ((first, -0.5), (second, -1.0), (third, -2.0)))
    scripted = Scripted(Token(first, scores=Scores(score)), END)
    body = {"prompt": "ab", "logprobs": 3}
    (choice,) = InProcess(scripted, tokenizer).post("/v1/completions", body).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\N{REPLACEMENT CHARACTER}": -0.5}]


@pytest.mark.parametrize(("max_tokens", "answer"), [(2, ["o", "k"]), (0, [])])
def test_echo_shows_the_log_probabilities_of_the_prompt(scripted, tokenizer, max_tokens, answer):
    """What lm-eval asks for to weigh a text."""
    body = {"prompt": "ab", "logprobs": 1, "echo": True, "max_tokens": max_tokens}
    (choice,) = InProcess(scripted, tokenizer).post("/v1/completions", body).json()["choices"]
    assert choice["text"] == "ab" + "".join(answer)
    assert choice["logprobs"]["tokens"] == ["a", "b", *answer]
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -0.5]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"b": -0.5, "x": -0.25}]
    assert choice["logprobs"]["text_offset"] == list(range(2 + len(answer)))
    assert scripted.asked[0].sampling.prompt_logprobs == 1


def test_a_stream_of_log_probabilities(scripted, tokenizer):
    with served(scripted, tokenizer) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        body = {"model": "scripted", "prompt": "ab", "logprobs": 1, "echo": True, "stream": True}
        parts = [part.choices[0].logprobs for part in client.completions.create(**body)]
        client.close()
    assert [token for part in parts for token in part.tokens] == ["a", "b", "o", "k"]
    assert [offset for part in parts for offset in part.text_offset] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_with_log_probabilities(scripted, tokenizer, stream):
    with served(scripted, tokenizer) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        found = client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "ab"}],
            logprobs=True,
            top_logprobs=2,
            stream=stream,
        )
        choices = [part.choices[0] for part in (found if stream else [found])]
        client.close()
    content = [token for choice in choices for token in choice.logprobs.content]
    assert [(each.token, each.logprob, each.bytes) for each in content] == [
        ("o", -0.125, [111]),
        ("k", -9999.0, [107]),
    ]
    tops = [(top.token, top.logprob) for top in content[0].top_logprobs]
    assert tops == [("o", -0.125), ("x", -3.0)]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_in_the_form_of_vllm(scripted, tokenizer, path):
    body = {"prompt_logprobs": 1}
    body |= (
        {"prompt": "ab"}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": "ab"}]}
    )
    found = InProcess(scripted, tokenizer).post(path, body).json()
    holder = found["choices"][0] if path == "/v1/completions" else found
    b, x = tokenizer.encode("bx")
    assert holder["prompt_logprobs"] == [
        None,
        {
            str(x): {"logprob": -0.25, "rank": 1, "decoded_token": "x"},
            str(b): {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
        },
    ]
    assert found["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt_logprobs": -2}, "prompt_logprobs"),
        ("/v1/chat/completions", {"logprobs": 2}, "logprobs"),
        ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/v1/completions", {"top_k": -2}, "top_k"),
        ("/v1/completions", {"min_p": 1.5}, "min_p"),
        ("/v1/completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("/v1/completions", {"presence_penalty": 2.5}, "presence_penalty"),
        ("/v1/completions", {"logit_bias": {"5": 101}}, "logit_bias.5"),
        ("/v1/completions", {"logit_bias": {"300": 1}}, "logit_bias"),
        ("/v1/completions", {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tokenizer, path, fields, param):
    body = (
        {"prompt": "ab"}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": "ab"}]}
    )
    answer = InProcess(Scripted(END, vocabulary=256), tokenizer).post(path, body | fields)
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith(param)


def test_parameters_reach_the_engine():
    frontend = Scripted(END)
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.5,
        "min_tokens": 2,
        "seed": 3,
    }
    body = {"prompt": [1], "logit_bias": {"5": 1.5}, "stop_token_ids": [9, 8]} | fields
    assert InProcess(frontend).post("/v1/completions", body).status_code == 200
    expected = Sampling(logit_bias=((5, 1.5),), stop_tokens=(8, 9), **fields)
    assert frontend.asked[0].sampling == expected
    InProcess(frontend).post("/v1/completions", {"prompt": [1], "top_k": -1})
    assert frontend.asked[1].sampling == Sampling(temperature=1.0)


def test_stop_strings_wait_for_the_least_number_of_tokens(tokenizer):
    says = [Token(token) for token in tokenizer.encode("a.b.c")]
    endpoint = InProcess(Scripted(*says, END), tokenizer)
    body = {"prompt": "x", "stop": ".", "min_tokens": 3}
    (choice,) = endpoint.post("/v1/completions", body).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a.b", "stop")


def check_prefix_hits(live):
    """A prompt is found again, but not if the log probabilities of its tokens are wanted."""
    endpoint = InProcess(live)

    def ask(count, **more):
        before = live.load().cache_asked_tokens
        for _ in range(count):
            endpoint.post("/v1/completions", {"prompt": [7] * 100, "max_tokens": 1} | more)
        wait_for(lambda: live.load().cache_asked_tokens >= before + 100 * count, "look-ups")
        return live.load().cache_hit_tokens

    assert ask(3, prompt_logprobs=0) == 0
    assert ask(3) == 2 * 96
    text = endpoint.get("/metrics").text
    assert f'vllm:prefix_cache_hits_total{{model_name="{live.model_name}"}}' in text


@pytest.mark.parametrize("node", ["paper", "vllm"])
def test_a_cluster_of_emulated_engines_is_certain_of_its_tokens(node, tmp_path):
    scenario = write_tiny_scenario(
        tmp_path,
        {"n0": [0, 8]} if node == "vllm" else {"n0": [0, 4], "n1": [4, 8]},
        scheduler={"node": node},
        engine=write_engine(tmp_path),
        physics="calibrated",
    )
    with running(scenario, NodeEntry(), time_scale=10.0) as (live, *_):
        body = {"prompt": [4, 5, 6], "max_tokens": 2, "logprobs": 1, "echo": True}
        (choice,) = InProcess(live).post("/v1/completions", body).json()["choices"]
        if node == "vllm":
            check_prefix_hits(live)
    answer = [str(made_up_token(place)) for place in (3, 4)]
    assert choice["logprobs"]["tokens"] == ["4", "5", "6", *answer]
    assert choice["logprobs"]["token_logprobs"] == [None, 0, 0, 0, 0]
