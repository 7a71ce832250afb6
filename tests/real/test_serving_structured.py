"""Structured output: answers follow a schema, a regular expression or a grammar."""

from __future__ import annotations

import json
import re

import pytest
from live import Answer, running, submit, wait_for
from serving import InProcess, Scripted, error_of
from tiny_scenario import write_engine, write_tiny_scenario
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.engines.engine import GREEDY, Sampling
from helixreal.engines.grammar import GrammarError, Grammars
from helixreal.inventory import NodeEntry
from helixreal.serving import Tokenizer
from helixreal.serving.frontend import Failed, Finished

END = Finished("length")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
PARSES = {"schema": SCHEMA, "name": "pet"}


def write_model(folder):
    """A tokenizer, and a config.json that names the byte 0 as the end of a text."""
    write_tiny_tokenizer(folder)
    config = (
        json.loads((folder / "config.json").read_text())
        if (folder / "config.json").exists()
        else {}
    )
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_model(tmp_path_factory.mktemp("tokenizer")))


def chat(**more):
    return {"messages": [{"role": "user", "content": "hi"}]} | more


# -- at the door -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": PARSES}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"structured_outputs": {"regex": "a+b"}},
        {"structured_outputs": {"choice": ["yes", "no (maybe)"]}},
        {"structured_outputs": {"grammar": 'start: "a" start | "b"'}},
        {"guided_json": SCHEMA},
        {"guided_choice": ["a", "b"]},
    ],
)
def test_grammars_reach_the_engine(tokenizer, fields):
    frontend = Scripted(END, vocabulary=256)
    answer = InProcess(frontend, tokenizer).post("/v1/chat/completions", chat(**fields))
    assert answer.status_code == 200, answer.text
    sampling = frontend.asked[0].sampling
    assert sampling.grammar
    assert sampling.needs_context
    assert sampling.stop_tokens == (2,)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"yaml": "{"}}, "structured_outputs.yaml"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"guided_choice": ["a" * 200_000]}, "guided_choice"),
        ({"guided_regex": "(a{1000}){1000}"}, "guided_regex"),  # seconds of work for a node
        ({"structured_outputs": {"regex": ".*" * 200}}, "structured_outputs.regex"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens"),
    ],
)
def test_what_is_no_grammar_is_refused_by_name(tokenizer, fields, param):
    frontend = Scripted(END, vocabulary=256)
    answer = InProcess(frontend, tokenizer).post("/v1/chat/completions", chat(**fields))
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert not frontend.asked


def test_emulated_engines_and_models_without_an_end_follow_no_grammar(tokenizer, tmp_path):
    asked = chat(response_format={"type": "json_object"})
    emulated = InProcess(Scripted(END), tokenizer).post("/v1/chat/completions", asked)
    assert (emulated.status_code, error_of(emulated)["param"]) == (400, "response_format")
    endless = Tokenizer(write_tiny_tokenizer(tmp_path))
    answer = InProcess(Scripted(END, vocabulary=256), endless).post("/v1/chat/completions", asked)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "response_format")


# -- masks -----------------------------------------------------------------------------------


def grammar_from_regex(regex):
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(regex)


def test_masks_follow_the_answer_and_may_be_made_again(tmp_path):
    folder = write_model(tmp_path)
    tokenizer = Tokenizer(folder)
    grammar, text = grammar_from_regex("ab[cd]"), tokenizer.encode("abd")
    grammars = Grammars(str(folder))

    def allowed(answer, key="one"):
        found = grammars.allowed(key, grammar, answer, (2,))
        return {token for token, flag in enumerate(found) if flag}

    letters = {letter: tokenizer.encode(letter)[0] for letter in "abcd"}
    expected = [{letters["a"]}, {letters["b"]}, {letters["c"], letters["d"]}, {2}]
    assert [allowed(text[:number]) for number in range(4)] == expected
    assert allowed(text[:2], "restarted") == expected[2]
    assert allowed(text[:1]) == expected[1]  # the key of another request
    with pytest.raises(GrammarError, match="left the grammar"):
        allowed(tokenizer.encode("x"), "wrong")


def test_a_node_limits_its_work_on_a_grammar_and_says_in_one_line_why(tmp_path):
    folder = write_model(tmp_path)
    with pytest.raises(GrammarError) as raised:
        Grammars(str(folder)).allowed("one", grammar_from_regex(".*" * 200), [64], (2,))
    (line,) = str(raised.value).splitlines()
    assert line.endswith(": lexer error: too many expressions constructed")


def test_a_node_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(GrammarError, match="tokenizer"):
        Grammars(str(tmp_path)).allowed("one", grammar_from_regex("a"), [], (2,))


@pytest.mark.parametrize("node", ["paper", "vllm"])
def test_a_row_that_cannot_be_sampled_fails_alone(tmp_path, node):
    """Emulated engines follow no grammar: the nodes say so, if the endpoint does not."""
    scenario = write_tiny_scenario(
        tmp_path,
        {"n0": [0, 4], "n1": [4, 8]},
        scheduler={"node": node},
        engine=write_engine(tmp_path),
        physics="calibrated",
    )
    with running(scenario, NodeEntry()) as (live, _, cluster):
        answers = [Answer([1] * 5, 30) for _ in range(9)]
        for number, answer in enumerate(answers):
            sampling = Sampling(grammar="{}") if number % 3 == 1 else GREEDY
            submit(live, answer, sampling=sampling)
        assert all(answer.is_over.wait(60) for answer in answers)
        failed = [isinstance(answer.ends[0], Failed) for answer in answers]
        assert failed == [number % 3 == 1 for number in range(9)]
        assert "no grammar" in answers[1].ends[0].message
        wait_for(lambda: live.load().running == 0, "no request is left")
        wait_for(
            lambda: all(
                not w.num_running and not w.num_waiting for w in cluster.membership.workers
            ),
            "no request is left on the nodes",
        )


# -- with an engine --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_model(write_tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loops", [False, True])
def test_answers_of_a_random_model_follow_their_grammar(model, tmp_path, loops):
    more = {}
    if loops:
        more = {
            "layers": {"n0": [0, 4], "n1": [4, 8]},
            "scheduler": {"node": "vllm"},
            "engine": write_engine(tmp_path),
            "physics": "calibrated",
        }
    entry = NodeEntry(engine="torch", model=str(model), kv_memory_bytes=16 << 20)
    with running(write_tiny_scenario(tmp_path, **more), entry) as (live, *_):
        endpoint = InProcess(live, Tokenizer(model))

        def texts(**fields):
            answer = endpoint.post(
                "/v1/chat/completions", chat(max_tokens=150, n=3, seed=5, logprobs=True, **fields)
            )
            assert answer.status_code == 200, answer.text
            choices = answer.json()["choices"]
            assert {choice["finish_reason"] for choice in choices} == {"stop"}
            return [choice["message"]["content"] for choice in choices]

        schema = {"type": "json_schema", "json_schema": PARSES}
        for text in texts(response_format=schema):
            found = json.loads(text)
            assert set(found) == {"name", "age", "kind"}
            assert 0 <= found["age"] <= 99
            assert found["kind"] in ("cat", "dog")
        regex = r"[0-9]{3}-[a-f]{2}"
        assert all(re.fullmatch(regex, text) for text in texts(structured_outputs={"regex": regex}))
        choice = {"choice": ["yes", "no (maybe)"]}
        assert set(texts(structured_outputs=choice, temperature=2)) <= set(choice["choice"])


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_a_grammar_that_a_node_cannot_apply_fails_its_request_alone(model, tmp_path):
    """The endpoint has a tokenizer, the nodes' model folder has none."""
    folder = tmp_path / "without"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    entry = NodeEntry(engine="torch", model=str(folder), kv_memory_bytes=16 << 20)
    with running(write_tiny_scenario(tmp_path), entry) as (live, *_):
        endpoint = InProcess(live, Tokenizer(model))
        asked = chat(max_tokens=5, response_format={"type": "json_object"})
        for _ in range(2):
            failed = endpoint.post("/v1/chat/completions", asked)
            assert failed.status_code == 503
            assert "tokenizer" in error_of(failed)["message"]
            assert endpoint.post("/v1/chat/completions", chat(max_tokens=5)).status_code == 200
