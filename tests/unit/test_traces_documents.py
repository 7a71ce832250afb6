"""Traces that are one JSON document: ShareGPT conversations, results of `vllm bench serve`."""

from __future__ import annotations

import gzip
import json
import sys

import pytest

from helixsim.errors import InputError, TraceError
from helixsim.traces import TRACE_FORMATS, read_lengths, read_trace


def turn(side, text):
    return {"from": side, "value": text}


TALKS = [
    {"id": "a", "conversations": [turn("human", "hello there"), turn("gpt", "hi")]},
    {"id": "b", "conversations": []},
    {
        "id": "c",
        "conversations": [
            turn("system", "x" * 400),
            turn("human", "h" * 40),
            turn("gpt", "g" * 20),
            turn("human", "h" * 80),
            turn("gpt", ""),
            turn("human", "no answer"),
        ],
    },
]
BENCH = {
    "request_throughput": 1.0,
    "input_lens": [100, 200, 7, 50],
    "output_lens": [3, 1, 0, 5],
    "start_times": [1001.0, 1000.0, 1001.5, 1002.0],
    "errors": ["", "", "", "cut off"],
}


@pytest.fixture
def write(tmp_path):
    def to_file(document, name="any.json", **dump):
        path = tmp_path / name
        text = document if isinstance(document, str) else json.dumps(document, **dump)
        path.write_text(text)
        return path

    return to_file


@pytest.mark.parametrize("indent", [None, 2])
def test_sharegpt_has_a_request_for_each_prompt_with_an_answer(write, indent):
    lengths = read_lengths(write(TALKS, indent=indent))
    # A quarter of the characters, rounded up: 11 and 2, 40 and 20; one answer is empty.
    assert lengths.pairs == ((3, 1), (10, 5))
    assert lengths.notes == (
        "any.json: 1 of 3 conversations left out: they have no prompt with an answer",
        "any.json: lengths are characters / 4, for want of a tokenizer",
        "any.json: 1 of 3 rows left out: 1 without output tokens",
    )


def test_sharegpt_may_have_a_conversation_in_each_line(write):
    path = write("\n".join(map(json.dumps, TALKS)) + "\n")
    assert read_lengths(path).pairs == ((3, 1), (10, 5))
    with pytest.raises(TraceError, match="row 2: is no JSON object"):
        read_lengths(write(json.dumps(TALKS[0]) + "\n{"))


def test_sharegpt_may_have_the_names_of_requests(write):
    turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}]
    assert read_lengths(write([{"messages": turns}])).pairs == ((3, 1),)


def test_sharegpt_may_be_packed(tmp_path):
    path = tmp_path / "talks.json.gz"
    path.write_bytes(gzip.compress(json.dumps(TALKS).encode()))
    assert read_lengths(path).pairs == ((3, 1), (10, 5))


def test_a_tokenizer_counts_the_tokens(write, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hello": 0, "hi": 1, "?": 2}, "?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    lengths = read_lengths(write(TALKS[:1]), str(tmp_path / "tokenizer.json"))
    assert lengths.pairs == ((2, 1),)
    assert lengths.notes == (f"any.json: lengths are tokens of {tmp_path / 'tokenizer.json'}",)


def test_a_tokenizer_by_name_comes_from_the_local_cache(write, tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "cache" / "models--my--llm" / "snapshots" / "1"
    folder.mkdir(parents=True)
    model = tokenizers.models.WordLevel({"?": 0}, "?")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert read_lengths(write(TALKS[:1]), "my/llm").pairs == ((1, 1),)
    with pytest.raises(InputError, match="there is no tokenizer 'my/other'"):
        read_lengths(write(TALKS[:1]), "my/other")


def test_what_a_tokenizer_needs(write, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    name = str(tmp_path / "tokenizer.json")
    with pytest.raises(TraceError, match=r"numbers of tokens \(vLLM bench result JSON\)"):
        pytest.importorskip("tokenizers")
        (tmp_path / "good.json").write_text(
            '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], '
            '"normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, '
            '"model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}'
        )
        read_lengths(write(BENCH), str(tmp_path / "good.json"))
    with pytest.raises(InputError, match=r"tokenizer\.json: is no tokenizer"):
        read_lengths(write(TALKS), name)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="needs the package tokenizers: pip install tokenizers"):
        read_lengths(write(TALKS), name)


def test_sharegpt_has_no_times(write):
    with pytest.raises(TraceError, match=r"not requests .* \(ShareGPT JSON\); give it as lengths"):
        read_trace(write(TALKS))


def test_a_bench_result_has_the_times_of_sending(write):
    trace = read_trace(write(BENCH))
    rows = [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]
    assert rows == [(0.0, 200, 1), (1.0, 100, 3)]
    assert trace.num_skipped == 2
    assert trace.notes == ("any.json: 2 of 4 rows left out: 2 of failed requests",)
    assert read_lengths(write(BENCH)).pairs == ((200, 1), (100, 3))
    assert read_trace(write(BENCH, indent=1)) == trace


def test_an_older_bench_result_tells_how_it_was_sent(write):
    old = {key: value for key, value in BENCH.items() if key != "start_times"}
    old |= {"ttfts": [1.0] * 4, "itls": [[]] * 4, "request_rate": 0.5}
    trace = read_trace(write(old))
    assert [r.arrival_s for r in trace.requests] == [0.0, 2.0]
    assert "sent at equal intervals, 0.5 a second" in trace.notes[0]


def test_a_document_may_be_longer_than_any_line(write):
    long = BENCH | {key: BENCH[key] * 100_000 for key in BENCH if isinstance(BENCH[key], list)}
    assert len(read_trace(write(long))) == 200_000


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[1, 2", r"row 1: is not one JSON document"),
        (f"{json.dumps(BENCH)}\n{json.dumps(BENCH)}", "row 2: .* Extra data.*; keep one in a file"),
        ("[1, 2]", r"\[0\]: is no conversation of ShareGPT JSON"),
        ("[" * 100_000, "is not one JSON document"),
        ("[]", "no conversation in it has a prompt and its answer"),
        ([{"conversations": []}], "no conversation in it has a prompt and its answer"),
        ([{"conversations": [{"from": "human"}]}], r"\[0\]\.conversations\[0\]: is no turn"),
        ([{"conversations": [turn("human", "a"), turn("gpt", "")]}], "no row of it can be run"),
        ({"request_throughput": 1.0}, "lacks input_lens: run `vllm bench serve`"),
        (BENCH | {"output_lens": [1]}, "output_lens: has 1 entries; input_lens has 4"),
        (BENCH | {"output_lens": [0] * 4}, "no row of it can be run: 4 of failed requests"),
        (BENCH | {"start_times": ["x"] * 4}, r"start_times\[0\]: should be a time in seconds"),
    ],
)
def test_mistakes_in_a_document_are_named(write, document, message):
    path = write(document)
    with pytest.raises(TraceError, match=message) as caught:
        read_lengths(path)
    assert caught.value.file == str(path)


def test_a_document_is_not_of_another_format(write):
    mooncake, sharegpt = (TRACE_FORMATS.get(name) for name in ("mooncake", "sharegpt"))
    with pytest.raises(TraceError, match="is ShareGPT JSON, not Mooncake JSONL"):
        read_trace(write(TALKS), mooncake)
    with pytest.raises(TraceError, match="is not one JSON document, as ShareGPT JSON is"):
        read_trace(write("arrived_at,num_prefill_tokens,num_decode_tokens\n1,1,1\n"), sharegpt)
