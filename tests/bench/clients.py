"""Clients that people use, against an endpoint whose answers are given; run it with pytest.

The packages are too large for every run of the tests; missing ones are skipped::

    pip install langchain-openai litellm instructor
    PYTHONPATH=.:tests/real python -m pytest -q tests/bench/clients.py
"""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel
from serving import Scripted, served
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
