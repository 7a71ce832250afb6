"""What the endpoint understands: every field has its effect, or is refused by name."""

from __future__ import annotations

import openai
import pytest
from serving import InProcess, Scripted, error_of, served
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.serving import Tokenizer
from helixreal.serving.frontend import Failed, Finished, Refused, Token

END = Finished("length")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def chat(*contents, **more):
    messages = [{"role": "user", "content": content} for content in contents]
    return {"messages": messages} | more


# -- content in parts ------------------------------------------------------------------------------


def test_parts_of_text_are_joined_by_line_breaks(tokenizer):
    frontend = Scripted(Token(65), END)
    with served(frontend, tokenizer) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
        client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": parts}]
        )
        client.close()
    assert tokenizer.decode(frontend.asked[0].prompt) == "user: Hello\nthere\nassistant:"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "text"},
        {"type": [], "text": ""},
        {"text": "no type"},
        7,
    ],
)
def test_other_parts_are_refused(tokenizer, part):
    frontend = Scripted(END)
    content = [{"type": "text", "text": "What is this?"}, part]
    answer = InProcess(frontend, tokenizer).post("/v1/chat/completions", chat("hi", content))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "messages.1.content"
    assert "part 1" in error_of(answer)["message"]
    assert not frontend.asked


# -- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "suffix", "end"),
        ("/v1/completions", "best_of", 3),
        ("/v1/completions", "use_beam_search", True),
        ("/v1/completions", "bad_words", ["no"]),
        ("/v1/completions", "max_token", 5),
        ("/v1/chat/completions", "tools", [{"type": "function", "function": {"name": "f"}}]),
        ("/v1/chat/completions", "tool_choice", "required"),
        ("/v1/chat/completions", "audio", {"voice": "x"}),
        ("/v1/chat/completions", "reasoning_effort", "high"),
    ],
)
def test_fields_without_support_are_refused_by_name(tokenizer, path, field, value):
    frontend = Scripted(END)
    body = {"prompt": [1]} if path == "/v1/completions" else chat("hi")
    answer = InProcess(frontend, tokenizer).post(path, body | {field: value})
    assert (answer.status_code, error_of(answer)["param"]) == (400, field)
    assert field in error_of(answer)["message"]
    assert not frontend.asked


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "suffix": None, "use_beam_search": False, "length_penalty": 1},
        {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto"},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
    ],
)
def test_defaults_and_harmless_fields_are_accepted(tokenizer, fields):
    answer = InProcess(Scripted(END), tokenizer).post("/v1/chat/completions", chat("hi") | fields)
    assert answer.status_code == 200


def test_null_is_the_default_of_every_parameter():
    frontend = Scripted(END)
    names = (
        "model max_tokens temperature top_p n seed stop stop_token_ids ignore_eos stream echo "
        "stream_options logprobs top_k user suffix truncate_prompt_tokens skip_special_tokens"
    )
    body = {"prompt": [1]} | dict.fromkeys(names.split())
    answer = InProcess(frontend).post("/v1/completions", body)
    assert answer.status_code == 200
    plain = InProcess(frontend).post("/v1/completions", {"prompt": [1]})
    assert plain.status_code == 200
    assert frontend.asked[0] == frontend.asked[1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1], "temperature": "hot"}, "temperature"),
        ({"prompt": [1], "stop_token_ids": [1, -3]}, "stop_token_ids.1"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1], "stream_options": {"include_usage": 7}}, "stream_options.include_usage"),
        ({"prompt": [1], "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"prompt": [1], "echo": 1}, "echo"),
        ({"prompt": [9]}, "prompt"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens"),
        ({"prompt": [1], "max_tokens": 1000}, "max_tokens"),
        ({"prompt": [1] * 1000}, "prompt"),
        ([], None),
    ],
)
def test_errors_name_the_field(body, param):
    answer = InProcess(Scripted(END, vocabulary=9)).post("/v1/completions", body)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_a_tiny_temperature_is_greedy():
    frontend = Scripted(END)
    for temperature in (1e-50, 9e-6, 0, 2e-5):
        body = {"prompt": [1], "temperature": temperature}
        assert InProcess(frontend).post("/v1/completions", body).status_code == 200
    assert [each.sampling.is_greedy for each in frontend.asked] == [True, True, True, False]


def test_choices_have_seeds_of_their_own():
    frontend = Scripted(END)
    for seed in (7, 7, 2**63 - 1):
        body = {"prompt": [[1], [2]], "n": 2, "seed": seed}
        InProcess(frontend).post("/v1/completions", body)
    seeds = [each.sampling.seed for each in frontend.asked]
    assert seeds == [7, 8] * 4 + [2**63 - 1, -(2**63)] * 2


def test_max_tokens_left_out(tokenizer):
    frontend = Scripted(END)
    endpoint = InProcess(frontend, tokenizer, max_model_len=100)
    endpoint.post("/v1/completions", {"prompt": [1] * 10})
    endpoint.post("/v1/completions", {"prompt": [1] * 90})
    endpoint.post("/v1/chat/completions", chat("hi"))
    prompt = len(frontend.asked[2].prompt)
    assert [each.max_tokens for each in frontend.asked] == [16, 10, 100 - prompt]


def test_the_prompt_may_be_cut():
    frontend = Scripted(END)
    endpoint = InProcess(frontend, max_model_len=8)
    for most in (2, -1):
        body = {"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": most}
        endpoint.post("/v1/completions", body)
    assert [list(each.prompt) for each in frontend.asked] == [[3, 4], [1, 2, 3, 4]]


def test_a_text_that_is_too_long_is_refused_before_it_is_tokenized(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "encode", None)
    answer = InProcess(Scripted(END), tokenizer).post("/v1/completions", {"prompt": "a" * 50_000})
    assert answer.status_code == 400
    assert "at least" in error_of(answer)["message"]


def test_special_tokens_stop_strings_and_answers_of_no_token(tokenizer):
    says = [Token(token) for token in tokenizer.encode("one. two")]
    endpoint = InProcess(Scripted(*says, END), tokenizer)
    body = {"prompt": "x", "stop": "."}
    (plain,) = endpoint.post("/v1/completions", body).json()["choices"]
    (kept,) = endpoint.post("/v1/completions", body | {"include_stop_str_in_output": True}).json()[
        "choices"
    ]
    assert (plain["text"], kept["text"], plain["stop_reason"]) == ("one", "one.", ".")
    nothing = endpoint.post("/v1/completions", {"prompt": "x", "max_tokens": 0, "echo": True})
    (choice,) = nothing.json()["choices"]
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("x", [], "length")
    assert nothing.json()["usage"]["completion_tokens"] == 0


# -- status ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "status", "retry"),
    [
        (Refused("full", 2.3), 429, "3"),
        (Refused("no route", 1.0, is_unavailable=True), 503, "1"),
        (Refused("too long", None), 400, None),
        (Failed("n0 was lost"), 503, "1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_status_of_refusals(event, status, retry, stream):
    body = {"prompt": [1], "stream": stream}
    answer = InProcess(Scripted(event)).post("/v1/completions", body)
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry)
    assert error_of(answer)["code"] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("PUT", "/v1/models", 405)],
)
def test_wrong_paths_and_methods_have_the_form_of_errors(method, path, status):
    answer = InProcess(Scripted()).request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (status, status)
    assert path in error_of(answer)["message"]
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("BEARER  secret", 200),
        ("secret", 401),
        ("Basic secret", 401),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        (None, 401),
    ],
)
def test_the_key_comes_with_bearer_in_any_case(header, status):
    headers = {} if header is None else {"Authorization": header}
    endpoint = InProcess(Scripted(), api_key="secret")
    assert endpoint.get("/v1/models", headers=headers).status_code == status
    assert endpoint.get("/health").status_code == 200


def test_errors_of_the_server_itself_have_the_form_of_errors():
    class Broken(Scripted):
        def submit(self, generation, listener):
            raise RuntimeError("a secret")

    with served(Broken()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="internal error") as caught:
            client.completions.create(model="scripted", prompt=[1])
        client.close()
    assert "secret" not in str(caught.value)


# -- identifiers and further routes ----------------------------------------------------------------


def test_request_ids_are_taken_or_made_and_logged(caplog):
    endpoint = InProcess(Scripted(Failed("n0 was lost")))
    sent = {"X-Request-Id": "mine-1"}
    answer = endpoint.post("/v1/completions", {"prompt": [1]}, headers=sent)
    assert answer.headers["x-request-id"] == "mine-1"
    assert "request mine-1: POST /v1/completions: status 503" in caplog.text
    streaming = InProcess(Scripted(Token(1), Failed("n0 was lost")))
    streaming.post("/v1/completions", {"prompt": [1], "stream": True}, headers=sent)
    assert "request mine-1: failed in its stream: n0 was lost" in caplog.text
    made = [
        endpoint.get("/v1/models", headers=headers).headers["x-request-id"]
        for headers in ({}, {}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 200})
    ]
    assert len({*made, "a b", "x" * 200}) == 6
    found = InProcess(Scripted(END)).post("/v1/completions", {"prompt": [1]}, headers=sent)
    assert found.json()["id"] == "cmpl-mine-1"


def test_names_of_the_model():
    endpoint = InProcess(Scripted(END), served_model_names=["gpt", "org/other"], max_model_len=50)
    listed = endpoint.get("/v1/models").json()["data"]
    assert [(each["id"], each["max_model_len"]) for each in listed] == [
        ("gpt", 50),
        ("org/other", 50),
    ]
    assert endpoint.get("/v1/models/org/other").json()["id"] == "org/other"
    assert endpoint.get("/v1/models/scripted").status_code == 404
    body = {"prompt": [1], "model": "org/other"}
    assert endpoint.post("/v1/completions", body).json()["model"] == "gpt"
    wrong = endpoint.post("/v1/completions", body | {"model": "scripted"})
    assert (wrong.status_code, error_of(wrong)["param"]) == (404, "model")


def test_tokenize_and_detokenize(tokenizer):
    endpoint = InProcess(Scripted(), tokenizer)
    found = endpoint.post("/tokenize", {"prompt": "né", "return_token_strs": True}).json()
    assert found["tokens"] == tokenizer.encode("né")
    assert (found["count"], found["max_model_len"]) == (3, 1000)
    assert found["token_strs"] == ["n", "Ã", "©"]
    of_chat = endpoint.post("/tokenize", chat("hi")).json()["tokens"]
    assert tokenizer.decode(of_chat) == "user: hi\nassistant:"
    back = endpoint.post("/detokenize", {"tokens": found["tokens"]})
    assert back.json() == {"prompt": "né"}
    assert endpoint.post("/tokenize", {}).status_code == 400
    assert InProcess(Scripted()).post("/tokenize", {"prompt": "a"}).status_code == 400


def test_the_document_describes_what_is_accepted():
    document = InProcess(Scripted()).get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    fields = schemas["ChatRequest"]["properties"]
    assert {"messages", "top_k", "logprobs", "user", "tools"} <= set(fields)
    assert fields["tools"] == {"enum": [None, []]}
    assert schemas["CompletionRequest"]["additionalProperties"] is False
    app = InProcess(Scripted()).app
    described = {path.replace("{name}", "{name:path}") for path in document["paths"]}
    assert described == {route.path for route in app.routes}


def test_version_and_ping():
    endpoint = InProcess(Scripted())
    assert endpoint.get("/version").json()["version"]
    assert endpoint.get("/ping").status_code == endpoint.post("/ping").status_code == 200


def test_a_chat_template_of_the_operator(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}{{ extra }}")
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path), chat_template=file)
    frontend = Scripted(END)
    body = chat("a", "b", chat_template_kwargs={"extra": "!"})
    InProcess(frontend, tokenizer).post("/v1/chat/completions", body)
    assert tokenizer.decode(frontend.asked[0].prompt) == "<a><b>!"
