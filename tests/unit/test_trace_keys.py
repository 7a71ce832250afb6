"""The keys of `workload.trace`: unit, start, cut, repeat, scale; and what a run is told of it."""

from __future__ import annotations

import pytest

from helixsim.cli import app
from helixsim.errors import InputError, ScenarioError
from helixsim.requests import TraceRequest
from helixsim.scenario.load import load_scenario
from helixsim.scenario.workload_warnings import workload_warnings
from helixsim.traces import Trace, read_trace
from helixsim.traces.formats import VIDUR

HEAD = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
# Ten requests, 4 s apart, from the second 1000 on; the prompt is the number of the request.
ROWS = "".join(f"{1000 + 4 * n},{n + 1},5\n" for n in range(10))


@pytest.fixture
def workload(load, tmp_path):
    (tmp_path / "trace.csv").write_text(HEAD + ROWS)

    def of(duration="36 s", **keys):
        section = {"mode": "online", "trace": {"file": "trace.csv", **keys}}
        return load({"workload": section, "run": {"duration": duration}}).workload

    return of


def arrivals(workload):
    return [(r.arrival_s, r.prompt_tokens) for r in workload.trace.requests]


def test_times_count_from_the_first_request(load, workload):
    by_keys = workload()
    assert arrivals(by_keys) == [(4.0 * n, n + 1) for n in range(10)]
    section = {"mode": "online", "trace": "trace.csv"}
    assert load({"workload": section, "run": {"duration": "36 s"}}).workload == by_keys


def test_start_and_cut(workload):
    assert arrivals(workload(start="6 s")) == [(4.0 * n - 6, n + 1) for n in range(2, 10)]
    # The end of the part is not in it.
    assert arrivals(workload(start="8 s", cut="8 s", duration="8 s")) == [(0.0, 3), (4.0, 4)]


def test_repeat_a_number_of_times(workload):
    # Ten gaps of 4 s: the first request comes again 4 s after the last.
    found = arrivals(workload(repeat=3))
    assert found == [(4.0 * n, n % 10 + 1) for n in range(30)]
    # The part is as long as it was cut, 10 s; 3 requests in it.
    found = arrivals(workload(cut="10 s", repeat=2))
    assert found == [(0, 1), (4, 2), (8, 3), (10, 1), (14, 2), (18, 3)]
    # A cut that is longer than the trace makes no silence.
    assert arrivals(workload(cut="1000 s", repeat=2))[10] == (40.0, 1)


def test_repeat_fills_the_run_at_its_rate(workload):
    filled = workload(repeat="fill", duration="100 s")
    assert filled.trace_fills_run
    assert len(filled.trace) == 30  # the run ends in the third repetition
    assert len(workload(repeat="fill", scale=4, duration="100 s").trace) == 110


def test_limits_do_not_change_when_the_part_comes_again(load, workload):
    workload()
    section = {
        "mode": "online",
        "trace": {"file": "trace.csv", "repeat": 2},
        "max_prompt_tokens": 2,
    }
    found = load({"workload": section, "run": {"duration": "36 s"}}).workload
    assert arrivals(found) == [(0, 1), (4, 2), (40, 1), (44, 2)]


def test_scale_is_a_factor_on_the_rate_after_the_cut(workload):
    found = workload(start="8 s", cut="8 s", scale=2, duration="4 s")
    assert (arrivals(found), found.rate_scale) == ([(0.0, 3), (4.0, 4)], 2)


@pytest.mark.parametrize(("unit", "gap_s"), [("s", 4.0), ("ms", 4e-3), ("us", 4e-6), ("ns", 4e-9)])
def test_time_units(tmp_path, unit, gap_s):
    (tmp_path / "trace.csv").write_text(HEAD + ROWS)
    trace = read_trace(tmp_path / "trace.csv", time_unit=unit)
    assert trace.span_s == pytest.approx(9 * gap_s)
    assert trace.notes == ()  # it is no guess


@pytest.mark.parametrize(
    ("name", "text", "unit", "message"),
    [
        ("dates.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n", "ms",
         "has dates .* so time_unit cannot be ms"),
        ("lss.jsonl", '{"arrival_time_ns": 5, "input_toks": 1, "output_toks": 1}\n', "ms",
         "has times in ns .* not in ms"),
        ("trace.csv", HEAD + ROWS, "h", "no unit of time 'h'; known are s, ms, us, ns"),
    ],
)  # fmt: skip
def test_a_unit_that_the_format_has_otherwise(tmp_path, name, text, unit, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(tmp_path / name, time_unit=unit)
    (tmp_path / "ok.jsonl").write_text(
        '{"arrival_time_ns": 5e9, "input_toks": 1, "output_toks": 1}\n'
    )
    assert read_trace(tmp_path / "ok.jsonl", time_unit="ns").requests[0].arrival_s == 5.0


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        # Seconds that are read as Mooncake's milliseconds: 1 request in 0.4 s.
        (
            "".join(
                f'{{"timestamp": {0.4 * n}, "input_length": 1, "output_length": 1}}\n'
                for n in range(20)
            ),
            "taken as ms, which makes 2,500 requests a second",
        ),
        # Milliseconds that are read as Vidur's seconds: 1 request in 2 s.
        (
            HEAD + "".join(f"{2000 * n},1,1\n" for n in range(20)),
            "taken as s, which makes 2,000 s between two requests",
        ),
        (HEAD + ROWS, None),
        (HEAD + "0,1,1\n0,1,1\n0,1,1\n", None),  # all at once: it may be meant
        (HEAD + "0,1,1\n9000,1,1\n", None),  # two requests are no rate
    ],
    ids=["too fast", "too slow", "plausible", "at once", "two requests"],
)
def test_a_rate_that_contradicts_the_unit_is_told(tmp_path, text, doubt):
    (tmp_path / "any").write_text(text)
    notes = read_trace(tmp_path / "any").notes
    if doubt is None:
        assert notes == ()
    else:
        assert doubt in notes[0]
        assert "set time_unit" in notes[0]


@pytest.mark.parametrize(
    ("keys", "where", "message"),
    [
        ({"start": "40 s"}, "trace", "has no request from 40 s on; its last is at 36 s"),
        ({"start": "5 s", "cut": "2 s"}, "trace", "has no request from 5 s to 7 s"),
        ({"start": "1 s", "duration": "2 s"}, "trace", "no request arrives in the run of 2 s: "
         "the first is at 3 s"),
        ({"cut": "1 s", "repeat": 20_000_000}, "trace.repeat", "less than or equal to 10000"),
        ({"repeat": "often"}, "trace.repeat", "should be 'fill'"),
        ({"start": "9 s", "cut": "4 s", "repeat": 2}, None, None),
        ({"format": "mooncake"}, None, "row 1: has no timestamp, which Mooncake JSONL needs"),
        ({"format": "monkey"}, "trace_format", "mooncake"),
        ({"time_unit": "h"}, "trace.time_unit", "should be 's', 'ms', 'us' or 'ns'"),
        ({"file": "other.csv"}, "trace", "there is no file"),
        ({"unit": "ms"}, "trace.unit", "unknown key"),
    ],
)  # fmt: skip
def test_keys_that_make_no_sense(workload, keys, where, message):
    if message is None:
        workload(**keys)
        return
    with pytest.raises(InputError) as caught:
        workload(**keys)
    text = str(caught.value)
    assert message in text
    assert where is None or f"workload.{where}" in text


def test_a_single_moment_needs_a_time_to_come_again(load, tmp_path):
    (tmp_path / "once.csv").write_text(HEAD + "5,1,1\n5,1,1\n")
    section = {"mode": "online", "trace": {"file": "once.csv", "repeat": "fill"}}
    with pytest.raises(ScenarioError, match=r"trace\.repeat: all its requests arrive at once: set"):
        load({"workload": section})
    section["trace"]["cut"] = "50 s"
    found = load({"workload": section}).workload
    assert [r.arrival_s for r in found.trace.requests] == [0, 0, 50, 50, 100, 100]


def test_more_repetitions_than_fit_into_memory():
    trace = Trace((TraceRequest(0.0, 1, 1),))
    with pytest.raises(InputError, match="6000000 times 1 requests are more than 5,000,000"):
        trace.repeated(6_000_000, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_scale": 3, "trace": {"file": "trace.csv", "scale": 2}}, "rate_scale: contradicts"),
        ({"rate_scale": 1, "trace": {"file": "trace.csv", "scale": 2}}, "rate_scale: contradicts"),
        (
            {"trace_format": "vidur", "trace": {"file": "trace.csv", "format": "azure"}},
            "trace_format: contradicts trace.format; give one of the two",
        ),
        ({"tokenizer": "my/llm", "trace": "trace.csv"}, "tokenizer: is for lengths that are texts"),
    ],
)
def test_contradictions_are_errors(load, workload, changes, message):
    workload()
    with pytest.raises(ScenarioError, match=message):
        load({"workload": {"mode": "online", **changes}})


def test_keys_beside_the_trace_go_with_it(load, workload):
    workload()
    section = {
        "mode": "online",
        "rate_scale": 2,
        "trace_format": "vidur",
        "trace": {"file": "trace.csv", "scale": 2, "start": "4 s"},
    }
    assert load({"workload": section}).workload.rate_scale == 2
    del section["trace"]["scale"]
    assert load({"workload": section}).workload.rate_scale == 2


def test_keys_can_be_set_where_the_scenario_names_a_file(load, workload):
    workload()
    section = {"mode": "online", "trace": "trace.csv"}
    scenario = load({"workload": section}, "workload.trace.start=8 s", "workload.trace.scale=2")
    assert scenario.document["workload"]["trace"] == {
        "file": "trace.csv",
        "start": "8 s",
        "scale": 2,
    }
    assert arrivals(scenario.workload)[0] == (0.0, 3)


def test_the_digest_has_the_content_of_the_file(load, workload, tmp_path):
    workload()
    section = {"workload": {"mode": "online", "trace": {"file": "trace.csv"}}}
    before = load(section).digest
    (tmp_path / "trace.csv").write_text(HEAD + ROWS + "1040,9,9\n")
    assert load(section).digest != before


# -- what is told


def warnings_of(load, trace, duration="100 s"):
    section = {"mode": "online", "trace": trace}
    return workload_warnings(load({"workload": section, "run": {"duration": duration}}))


def test_a_trace_that_ends_long_before_the_run_is_told(load, workload):
    workload()
    (warning,) = warnings_of(load, "trace.csv")
    assert warning.startswith(
        "the requests of the trace arrive from 0 to 36 s, the run lasts 100 s: rates over the run"
    )
    assert warnings_of(load, "trace.csv", "72 s") == []
    assert warnings_of(load, {"file": "trace.csv", "repeat": "fill"}) == []
    assert len(warnings_of(load, {"file": "trace.csv", "scale": 2}, "72 s")) == 1
    # A second of silence is what the answer needs.
    assert warnings_of(load, {"file": "trace.csv", "cut": "1 s"}, "1.5 s") == []


def test_a_trace_that_begins_late_is_told(load, workload):
    workload()
    section = {"mode": "online", "trace": {"file": "trace.csv", "repeat": 2}}
    changes = {"workload": section, "run": {"duration": "30 s"}}
    assert workload_warnings(load(changes)) == []
    (late,) = workload_warnings(load(changes, "workload.trace.start=4.1 s", "run.duration=7 s"))
    assert late.startswith("the requests of the trace arrive from 3.9 to ")


def test_rows_left_out_are_told_by_run_and_validate(scenario_file, load, tmp_path):
    from typer.testing import CliRunner

    (tmp_path / "trace.csv").write_text(HEAD + ROWS + "1001,5,0\n1002,0,0\n")
    section = {"workload": {"mode": "online", "trace": "trace.csv"}, "run": {"duration": "50 s"}}
    message = "trace.csv: 2 of 12 rows left out: 1 without output tokens, 1 without prompt tokens"
    assert workload_warnings(load(section)) == [message]
    result = CliRunner().invoke(app, ["validate", str(scenario_file(section))])
    assert result.exit_code == 0
    assert f"warning    {message}" in result.stdout
    result = CliRunner().invoke(
        app, ["run", str(scenario_file(section)), "--set", "run.duration=1 s"]
    )
    assert f"warning: {message}" in result.stdout


def test_lengths_tell_what_they_stand_on(load, tmp_path):
    (tmp_path / "lengths.csv").write_text("input_tokens,output_tokens\n5,6\n5,0\n")
    assert workload_warnings(load({"workload.lengths": "lengths.csv"})) == [
        "lengths.csv: 1 of 2 rows left out: 1 without output tokens"
    ]
    (tmp_path / "talks.json").write_text(
        '[{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "x"}]}]'
    )
    scenario = load({"workload.lengths": "talks.json"})
    assert scenario.workload.lengths.pairs == ((2, 1),)
    assert "characters / 4" in workload_warnings(scenario)[0]
    with pytest.raises(ScenarioError, match=r"workload\.tokenizer: there is no tokenizer 'no/s"):
        load({"workload.lengths": "talks.json", "workload.tokenizer": "no/such"})


def test_built_in_workloads_have_no_warnings():
    assert workload_warnings(load_scenario("quickstart")) == []


def test_the_format_by_hand_is_the_detected_one(tmp_path):
    (tmp_path / "trace.csv").write_text(HEAD + ROWS)
    path = tmp_path / "trace.csv"
    assert read_trace(path, VIDUR) == read_trace(path)
    assert read_trace(path).from_first().requests[0].arrival_s == 0.0
