"""Recordings of one row for each request: reading, figures, replay. Figures reckoned by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import capacity, make_scenario
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.profiles.machine import LatencyProfile
from helixsim.recorded.log_figures import comparison_text
from helixsim.recorded.log_inspection import inspect_log
from helixsim.recorded.log_replay import replay_log
from helixsim.recorded.recording import RecordedRun
from helixsim.recorded.replay import replay
from helixsim.recorded.request_log import LOG_COLUMNS
from helixsim.recorded.sources import load_recording

# Request 1 was queued before request 0; times count from its queueing at 10 s.
ROWS = [
    "0,100,3,10.5,11,11.2,12,14",
    "1,200,1,9.5,10,10.1,10.5,10.5",
    "2,50,5,11.5,12,12,13,17",
]
HEADER = ",".join(LOG_COLUMNS)
SERIES = ["1.0,500,3,1,0,2.5", "2.0,0,9,2,1,5", "7.0,0,9,0,0,0"]


def write_log(folder: Path, rows=ROWS, header=HEADER, series=()):
    folder.mkdir(exist_ok=True)
    (folder / "requests.csv").write_text("\n".join([header, *rows]) + "\n")
    if series:
        head = "t,prompt_throughput,gen_throughput,running,waiting,kv_cache_pct"
        (folder / "timeseries.csv").write_text("\n".join([head, *series]) + "\n")
    return folder


BENCH = {
    "model_id": "my-llm",
    "request_rate": "inf",
    "max_concurrency": None,
    "request_throughput": 1.0,
    "input_lens": [100, 200, 7, 50],
    "output_lens": [3, 1, 0, 5],
    "ttfts": [1.0, 0.5, 0.0, 1.0],
    "itls": [[1.0, 1.0], [], [], [1.0, 1.0, 1.0, 1.0]],
    "start_times": [1001.0, 1000.0, 1001.5, 1002.0],
    "errors": ["", "", "Internal Server Error", ""],
}


def write_bench(file: Path, **changes):
    data = {key: value for key, value in (BENCH | changes).items() if value != "absent"}
    file.write_text(json.dumps(data))
    return file


# -- reading


def check_log(log):
    assert log.input_tokens.tolist() == [200, 100, 50]
    assert log.output_tokens.tolist() == [1, 3, 5]
    assert log.sent_s.tolist() == [0.0, 1.0, 2.0]
    assert log.first_token_s.tolist() == [0.5, 2.0, 3.0]
    assert log.last_token_s.tolist() == [0.5, 4.0, 7.0]
    assert log.makespan_s == 7.0


def test_a_table_of_requests(tmp_path):
    folder = write_log(tmp_path / "log", series=SERIES)
    meta = {"model": "my-llm", "vllm_version": "0.19.0", "hardware": {"device_name": "my-gpu"}}
    (folder / "meta.json").write_text(json.dumps(meta))
    log = load_recording(folder)
    check_log(log)
    assert log.preemptions is None
    assert log.notes == ()
    assert log.name == "log"
    assert dict(log.about) == {"model": "my-llm", "vLLM": "0.19.0", "GPU": "my-gpu"}
    assert log.series.running.tolist() == [1, 2, 0]
    assert log.series.waiting.tolist() == [0, 1, 0]
    check_log(load_recording(folder / "requests.csv"))


def test_without_times_of_queueing_the_arrival_counts(tmp_path):
    rows = ["1,2,3,5,,", "1,2,3,4,6,8"]
    header = "preemptions,input_tokens,output_tokens,arrival_s,first_token_s,last_token_s"
    log = load_recording(write_log(tmp_path / "log", rows, header))
    assert log.sent_s.tolist() == [0.0, 1.0]
    assert log.first_token_s.tolist()[0] == 2.0
    assert np.isnan(log.last_token_s[1])
    assert (log.preemptions, log.makespan_s) == (2, 4.0)


def test_requests_without_an_answer_are_counted(tmp_path):
    log = load_recording(write_log(tmp_path / "log", [*ROWS, "3,10,0,12,12,12,,"]))
    check_log(log)
    assert log.notes == ("1 of 4 requests left out: its answer has no tokens",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,100,3,0,1,1,2"], "requests.csv: row 2: has 7 values; the header names 8"),
        (["0,0,3,0,1,1,2,3"], "requests.csv: row 2, column input_tokens: 0 tokens"),
        ([ROWS[0], "1,10,x,0,1,1,2,3"], "row 3, column output_tokens: 'x' is not a whole number"),
        (["0,10,3,0,-1,1,2,3"], "row 2, column queued_s: '-1' is not a time"),
        (["0,10,3,0,,1,2,3"], "row 2, column queued_s: '' is not a time"),
        (["0,10,3,0,3,3,2,3"], "row 2, column first_token_s: 2 should not be before queued_s, 3"),
        (["0,10,3,0,1,1,2,1"], "column last_token_s: 1 should not be before first_token_s, 2"),
        (["0,10,3,0,1,1,,4"], "column first_token_s: is empty, but last_token_s has a time"),
        ([], "requests.csv: has no requests"),
        (["0,10,0,0,1,1,2,3"], "has no request with an answer"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, rows, message):
    with pytest.raises(InputError) as caught:
        load_recording(write_log(tmp_path / "log", rows))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("output_tokens,first_token_s,last_token_s", "row 1: lacks the column input_tokens"),
        ("input_tokens,output_tokens,first_token_s,last_token_s", "row 1: lacks the column queued"),
    ],
)
def test_missing_columns_are_named(tmp_path, header, message):
    row = ",".join("1" * len(header.split(",")))
    with pytest.raises(InputError, match=message):
        load_recording(write_log(tmp_path / "log", [row], header))


def test_mistakes_in_files_beside_it_are_named(tmp_path):
    folder = write_log(tmp_path / "log", series=["1,0,0,-1,0,0"])
    with pytest.raises(InputError, match=r"timeseries.csv: row 2, column running: '-1' is not"):
        load_recording(folder)
    folder = write_log(tmp_path / "other")
    (folder / "meta.json").write_text("[]")
    with pytest.raises(InputError, match=r"meta.json: should be an object"):
        load_recording(folder)


def test_a_result_of_a_benchmark(tmp_path):
    log = load_recording(write_bench(tmp_path / "result.json"))
    check_log(log)
    assert log.notes == ("1 of 4 requests left out: they failed",)
    assert dict(log.about) == {"model": "my-llm"}
    (tmp_path / "other.json").write_text("{}")
    check_log(load_recording(tmp_path))


@pytest.mark.parametrize(
    ("changes", "sent", "note"),
    [
        ({}, [0, 0, 0], "sent at once"),
        ({"request_rate": 0.5}, [0, 2, 4], "sent at equal intervals, 0.5 a second"),
        # Requests 0 and 1 take 3 s and 0.5 s: request 3 follows request 1.
        ({"max_concurrency": 2}, [0, 0, 0.5], "sent at once, at most 2 in flight"),
        ({"max_concurrency": 1}, [0, 3, 3.5], "sent at once, at most 1 in flight"),
    ],
)
def test_older_results_lack_times_of_sending(tmp_path, changes, sent, note):
    log = load_recording(write_bench(tmp_path / "result.json", start_times="absent", **changes))
    assert log.sent_s.tolist() == sent
    assert log.input_tokens.tolist() == [100, 200, 50]
    assert log.notes[1].endswith(note)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"itls": "absent"}, "lacks itls: run `vllm bench serve` with --save-result --save-detail"),
        ({"ttfts": [1.0]}, "ttfts: has 1 entries; input_lens has 4"),
        ({"ttfts": [1.0, "x", 0.0, 1.0]}, r"ttfts\[1\]: should be a time in seconds"),
        ({"itls": [[], [-1.0], [], []]}, r"itls\[1\]: should be a list of times"),
        ({"output_lens": [3, 1.5, 0, 5]}, r"output_lens\[1\]: should be a number of tokens"),
        ({"input_lens": [3, 1, 0, 0]}, r"input_lens\[3\]: should be at least 1"),
        ({"output_lens": [0, 0, 0, 0]}, "has no request that succeeded"),
        ({"start_times": "absent", "request_rate": "fast"}, "lacks start_times, and request_rate"),
    ],
)
def test_mistakes_in_a_result_are_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_recording(write_bench(tmp_path / "result.json", **changes))


def test_several_results_in_one_file_are_named(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(f"{json.dumps(BENCH)}\n{json.dumps(BENCH)}")
    with pytest.raises(InputError, match=r"row 2: should be one JSON object; --append-result"):
        load_recording(file)
    write_bench(file)
    write_bench(tmp_path / "second.json")
    with pytest.raises(InputError, match="holds 2 results of benchmarks; name one, for example"):
        load_recording(tmp_path)


def test_what_is_no_recording_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no recording: it should contain events"):
        load_recording(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_recording(tmp_path / "none")


@pytest.mark.parametrize("name", ["rtx4090-llama3.1-8b", "rtxpro6000x2-qwen3-32b"])
def test_published_logs_are_read(reference, name):
    log = load_recording(reference / "vllm_runs" / name)
    assert not isinstance(log, RecordedRun)
    assert len(log) == 300
    assert log.series.time_s[0] == 1.0


# -- figures


def test_figures_of_a_log(tmp_path):
    found = inspect_log(load_recording(write_log(tmp_path / "log", series=SERIES)))
    assert (found["requests"], found["finished"]) == (3, 3)
    # Time to first token 0.5, 1 and 1 s; two answers of several tokens, 2 s / 2 and 4 s / 4;
    # end to end 0.5, 3 and 5 s. Percentile 90 of three lies 0.8 of the way from second to third.
    assert found["ttft_s"] == pytest.approx(
        {"mean": 2.5 / 3, "p50": 1.0, "p90": 1.0, "p95": 1.0, "p99": 1.0}
    )
    assert found["tpot_s"] == dict.fromkeys(["mean", "p50", "p90", "p95", "p99"], 1.0)
    assert found["e2e_s"] == pytest.approx(
        {"mean": 8.5 / 3, "p50": 3.0, "p90": 4.6, "p95": 4.8, "p99": 4.96}
    )
    assert found["makespan_s"] == 7.0
    assert found["arrivals_per_s"] == 1.0
    assert found["requests_per_s"] == pytest.approx(3 / 7)
    assert found["input_tokens_per_s"] == pytest.approx(350 / 7)
    assert found["output_tokens_per_s"] == pytest.approx(9 / 7)
    assert found["running"] == {"mean": 1.0, "max": 2}
    assert found["waiting"]["max"] == 1
    assert found["preemptions"] is None


def test_figures_of_a_window(tmp_path):
    log = load_recording(write_log(tmp_path / "log"))
    found = inspect_log(log, 1.0, 1.5)
    assert found["e2e_s"]["mean"] == 3.0
    assert found["running"] is None
    assert inspect_log(log, 10.0)["e2e_s"]["mean"] is None


def test_requests_that_did_not_end_have_no_latencies(tmp_path):
    found = inspect_log(load_recording(write_log(tmp_path / "log", [*ROWS[:2], "2,9,9,0,12,,,"])))
    assert (found["requests"], found["finished"], found["makespan_s"]) == (3, 2, 4.0)
    assert found["e2e_s"]["mean"] == 1.75


# -- replay

PREFILL = LatencyProfile((0, 1000), (0.0, 1.0))
DECODE = LatencyProfile((0, 2, 10), (0.0, 0.01, 0.1))  # a batch counts as two at least


def toy(**changes):
    """One node with one layer: a prompt token takes 1 ms, a decode 10 ms; 1 ms for each link."""
    settings = {"requests": [(0.0, 10, 4)], "prefill": PREFILL, "decode": DECODE}
    return make_scenario({"node": (0, 1)}, **(settings | changes))


@pytest.mark.parametrize(("physics", "decode_s"), [("paper", 0.012), ("calibrated", 0.01)])
def test_a_replay_by_hand(tmp_path, physics, decode_s):
    log = write_log(tmp_path / "log", series=SERIES)
    result = replay_log(log, replace(toy(), physics=physics))
    # Prompts of 200, 100 and 50 tokens, and 2 ms of network; then two and four decodes of 10 ms,
    # each with 2 ms of network if it leaves from the coordinator.
    assert result.latencies.ttft_s == pytest.approx([0.202, 0.102, 0.052], abs=1e-5)
    assert result.latencies.tpot_s[1:] == pytest.approx([decode_s, decode_s], abs=1e-5)
    assert np.isnan(result.latencies.tpot_s[0])
    ends = [0.202, 0.102 + 2 * decode_s, 0.052 + 4 * decode_s]
    assert result.latencies.e2e_s == pytest.approx(ends, abs=1e-5)
    second = max(ends[1:])
    assert result.simulated["e2e_s"]["p90"] == pytest.approx(
        second + 0.8 * (0.202 - second), abs=1e-5
    )
    assert result.simulated["makespan_s"] == pytest.approx(2 + ends[2], abs=1e-5)
    assert result.error["makespan_s"] == pytest.approx((2 + ends[2]) / 7 - 1, abs=1e-5)
    assert result.error["ttft_s"]["p50"] == pytest.approx(-0.898, abs=1e-5)
    assert (result.simulated["preemptions"], result.recorded["preemptions"]) == (0, None)
    assert result.error["preemptions"] is None
    assert result.notes == []
    assert result.recorded["e2e_s"]["p90"] == pytest.approx(4.6)


def test_running_and_waiting_over_time(tmp_path):
    # The first prompt takes 2 s alone; a batch takes one prompt, so the other two wait for it.
    rows = ["0,2000,1,0,0,0,1,1", "1,100,1,0,0.5,0,1,1", "2,100,1,0,0.6,0,2,2"]
    series = ["0.4,0,0,1,0,0", "0.8,0,0,2,1,0", "2.0,0,0,0,0,0"]
    log = write_log(tmp_path / "log", rows, series=series)
    scenario = toy(prefill=LatencyProfile((0, 2000), (0.0, 2.0)), room=capacity(max_prompts=1))
    over_time = replay_log(log, scenario).series.set_index("time_s")
    assert over_time.loc[0.4].tolist() == [1, 0, 1, 0]
    assert over_time.loc[0.8].tolist() == [2, 1, 1, 2]
    assert over_time.loc[2.0].tolist() == [0, 0, 1, 2]
    assert over_time["simulated_running"].iloc[-1] == 0


@pytest.mark.parametrize("node", ["prototype", "vllm"])
def test_preemptions_are_counted(tmp_path, node):
    # Both prompts fill two of five blocks of 16 tokens; the fifth goes to the request that came
    # first, and the other one is preempted when it needs its third.
    header = "preemptions,input_tokens,output_tokens,queued_s,first_token_s,last_token_s"
    log = write_log(tmp_path / "log", ["2,30,20,0,1,2", "2,30,20,0,1,2"], header)
    scenario = replace(toy(room=capacity(kv_token_layers=16 * 5)), physics="calibrated")
    kv = replace(scenario.scheduler.kv, high_water_mark=1.0)
    scenario = replace(scenario, scheduler=replace(scenario.scheduler, node=node, kv=kv))
    result = replay_log(log, scenario)
    assert result.recorded["preemptions"] == 4
    assert result.simulated["preemptions"] == 1
    assert result.error["preemptions"] == -0.75
    assert list(result.requests["simulated_preemptions"]) == [0, 1]
    last_line = comparison_text(result.as_dict()).splitlines()[-1]
    assert last_line.split() == ["preemptions", "4", "1", "-75.0%"]


def test_rejected_requests_are_counted_in_a_note(tmp_path):
    log = write_log(tmp_path / "log", ["0,100,2,0,0,0,1,2", "1,600,2,0,1,1,2,3"])
    result = replay_log(log, toy(room=capacity(max_prompt_tokens=500)), seeds=(0, 1))
    assert (
        "1 of 2 requests were not completed in the simulation (1 rejected: len" in result.notes[0]
    )
    assert len(result.notes) == 2
    assert result.simulated["e2e_s"]["mean"] == pytest.approx(0.114, abs=1e-5)
    assert result.simulated["makespan_s"] == pytest.approx(0.114, abs=1e-5)


def test_a_replay_has_a_window(tmp_path):
    log = write_log(tmp_path / "log")
    result = replay_log(log, toy(), warmup_s=1.5)
    assert result.simulated["ttft_s"]["mean"] == pytest.approx(0.052, abs=1e-5)
    assert result.recorded["ttft_s"]["mean"] == 1.0
    with pytest.raises(InputError, match="no request was sent from 9 s to 2 s"):
        replay_log(log, toy(), warmup_s=9.0)


def test_each_kind_of_recording_has_its_function(tmp_path, reference):
    with pytest.raises(InputError, match=r"is a request log; helixsim\.recorded\.log_replay"):
        replay(write_log(tmp_path / "log"), toy())
    run = reference / "recorded_runs" / "single24-llama1-30b-helix-t4-online"
    with pytest.raises(InputError, match=r"is a recorded run; helixsim\.replay replays it"):
        replay_log(run, toy())


def test_a_replay_is_shown(tmp_path):
    result = replay_log(write_log(tmp_path / "log"), toy())
    assert repr(result) == (
        "<LogReplayResult log in toy, paper physics: makespan 2.1 s, recorded 7.0 s>"
    )
    assert "e2e_s.p90" in result._repr_html_()
    assert len(result.plot().axes) == 4
    assert list(result.requests["simulated_preemptions"]) == [0, 0, 0]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_inspect_command(tmp_path):
    log = write_log(tmp_path / "log", series=SERIES)
    done = invoke("inspect", log, "-o", tmp_path / "look")
    assert done.exit_code == 0, done.output
    assert "requests: 3 sent within 2.0 s, 3 finished; makespan 7.000 s" in done.stdout
    assert "waiting requests: mean 0.3, max 1" in done.stdout
    names = {path.name for path in (tmp_path / "look").iterdir()}
    assert names == {"inspection.json", "inspection.png", "latencies.csv", "series.csv"}
    assert invoke("inspect", log, "-o", tmp_path / "look").exit_code == 2
    found = json.loads(invoke("inspect", write_bench(tmp_path / "b.json"), "--json").stdout)
    assert found["e2e_s"]["p90"] == pytest.approx(4.6)
    done = invoke("inspect", tmp_path / "none")
    assert done.exit_code == 2
    assert "does not exist; name a folder or a file of a recording" in done.output


def test_replay_command(tmp_path):
    log = write_log(tmp_path / "log")
    done = invoke("replay", log, "quickstart", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for side in ("recorded", "simulated", "error"):
        for key in ("ttft_s", "tpot_s", "e2e_s"):
            assert list(found[side][key]) == ["mean", "p50", "p90", "p95", "p99"]
        assert {"makespan_s", "preemptions"} <= set(found[side])
    out = tmp_path / "out"
    done = invoke("replay", write_bench(tmp_path / "b.json"), "quickstart", "-o", out)
    assert done.exit_code == 0, done.output
    assert "note: 1 of 4 requests left out: they failed" in done.stdout
    names = {path.name for path in out.iterdir()}
    assert {"replay.json", "replay.png", "replay_series.csv", "replay_requests.csv"} <= names
    assert invoke("replay", log, "quickstart", "-o", out).exit_code == 2
    assert invoke("replay", log, "quickstart", "-o", out, "--force").exit_code == 0
    done = invoke("replay", log, "quickstart", "--loop", "closed")
    assert done.exit_code == 2
    assert "a request log is sent at its recorded times" in done.output
