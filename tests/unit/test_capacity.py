"""`helixsim capacity` and `helixsim.capacity`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import fmean

import pytest
from small_study import SCENARIO, TOO_SLOW, write_study
from typer.testing import CliRunner

import helixsim
from helixsim.cli import app
from helixsim.errors import InputError, SimulationError
from helixsim.scenario.resolved import Slo
from helixsim.studies import capacity_runs
from helixsim.studies.backends import outcomes
from helixsim.studies.capacity_interval import interval_of, seed_capacity
from helixsim.studies.capacity_result import Probe
from helixsim.studies.capacity_text import capacity_text
from helixsim.studies.capacity_window import Windows
from helixsim.studies.objectives import Verdict, judge, parse_objectives, request_limits
from helixsim.studies.runs import Outcome

PACKAGE_ROOT = Path(__file__).parents[2]
TIGHT = "ttft_s.mean<=0.35"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_study()


def capacity(*arguments, code=0):
    result = CliRunner().invoke(app, ["capacity", "small.yaml", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def outcome(summary, arrived=100, finished=100):
    return Outcome(summary=summary, num_arrived=arrived, num_finished=finished)


# -- objectives


def test_objectives_are_limits_with_commas_between():
    found = parse_objectives(["ttft_s.p95<=5, tpot_s.p95 <= 1", "requests_per_s>=2"], ())
    assert [str(limit) for limit in found] == [
        "ttft_s.p95<=5",
        "tpot_s.p95<=1",
        "requests_per_s>=2",
    ]


def test_classes_with_a_share_are_objectives():
    slos = (Slo(name="a-b", ttft_s=1.0, share=0.9), Slo(name="c", e2e_s=9.0))
    (limit,) = parse_objectives([], slos)
    assert str(limit) == "slo.a-b.attainment>=0.9"
    (limit,) = parse_objectives(["slo.c.attainment>=0.5"], slos)
    assert limit.figure == "slo.c.attainment"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "--slo: needs objectives, such as 'ttft_s.p95<=5"),
        (["ttft_s.p95<5"], "--slo: 'ttft_s.p95<5' is not a limit"),
        (["ttft_s.p95<=5,"], "--slo: '' is not a limit"),
        (["ttft.p95<=5"], "--slo: unknown figure 'ttft.p95'"),
        (["slo.x.attainment>=1"], "slo.c.attainment"),
    ],
)
def test_objectives_that_cannot_be_read(texts, message):
    with pytest.raises(InputError) as error:
        parse_objectives(texts, (Slo(name="c", e2e_s=9.0),))
    assert message in str(error.value)


def test_limits_of_single_requests_are_the_strictest():
    found = parse_objectives(
        ["ttft_s.p95<=5,ttft_s.p50<=0.5,e2e_s.p5>=1,decode_latency_s.p5<=1"], ()
    )
    assert request_limits(found) == {"ttft": "500 ms"}


def test_the_mean_over_seeds_counts():
    limits = parse_objectives(["ttft_s.p95<=5", "requests_per_s>=2"], ())
    low = {"ttft_s": {"p95": 4.0}, "requests_per_s": 1.0}
    high = {"ttft_s": {"p95": 6.0}, "requests_per_s": 3.0}
    verdict = judge([outcome(low), outcome(high)], limits, 0.95)
    assert verdict.misses == ()
    assert verdict.figures["ttft_s.p95"] == 5.0
    worse = high | {"ttft_s": {"p95": 6.1}}
    assert judge([outcome(low), outcome(worse)], limits, 0.95).misses == ("ttft_s.p95 is 5.05",)
    less = low | {"requests_per_s": 0.9}
    assert judge([outcome(less), outcome(high)], limits, 0.95).misses == ("requests_per_s is 1.95",)


def test_a_figure_that_a_run_lacks_is_not_kept():
    limits = parse_objectives(["ttft_s.p95<=5"], ())
    runs = [outcome({"ttft_s": {"p95": 1.0}}), outcome({"ttft_s": {"p95": None}})]
    assert judge(runs, limits, 0.95).misses == ("ttft_s.p95 was not measured in every run",)


def test_requests_must_not_pile_up():
    limits = parse_objectives(["ttft_s.p95<=5"], ())
    good = {"ttft_s": {"p95": 1.0}}
    assert judge([outcome(good, 100, 92), outcome(good, 100, 98)], limits, 0.95).misses == ()
    verdict = judge([outcome(good, 100, 92), outcome(good, 100, 97)], limits, 0.95)
    assert verdict.misses == ("189 requests finished while 200 arrived",)
    assert verdict.sustained == 0.945
    assert judge([outcome(good, 0, 0)], limits, 0.95).misses == ("no request arrived",)


# -- the search


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("found"))
    try:
        write_study()
        return helixsim.capacity("small.yaml", TIGHT, seeds=3, keep_up=0.5, tolerance=0.1, jobs=1)
    finally:
        os.chdir(before)


def test_the_answer_lies_between_what_is_met_and_what_is_not(found):
    assert found.path == "workload.mean_tokens_per_s"
    assert found.seeds == (5, 6, 7)
    assert found.probes[0].rate == 100
    assert found.best.meets
    assert not found.above.meets
    assert found.best.rate < found.above.rate <= found.best.rate * 1.1
    assert found.best.verdict.figures["ttft_s.mean"] <= 0.35
    for probe in found.probes:
        if probe.meets:
            assert probe.rate <= found.best.rate
    assert 0 < found.best.requests_per_s < found.best.rate


def test_a_rate_gives_what_single_runs_give(found):
    summaries = []
    for seed in found.seeds:
        arguments = ["run", "small.yaml", "--json", "--seed", str(seed)]
        rate = f"workload.mean_tokens_per_s={found.best.rate!r}"
        done = CliRunner().invoke(app, [*arguments, "--set", rate])
        summaries.append(json.loads(done.stdout))
    figures = found.best.verdict.figures
    assert figures["ttft_s.p95"] == fmean(each["ttft_s"]["p95"] for each in summaries)
    assert figures["cost.dollars_per_million_output_tokens"] == fmean(
        each["cost"]["dollars_per_million_output_tokens"] for each in summaries
    )
    # Requests that keep to the limits of the objectives, each for itself.
    assert 0 < figures["slo.objectives.goodput_requests_per_s"] <= figures["requests_per_s"]


def test_the_command_prints_each_rate_and_the_answer(found):
    options = ["--slo", TIGHT, "--seeds", 3, "--keep-up", 0.5, "--tolerance", 0.1, "--jobs", 2]
    result = capacity(*options)
    lines = result.stdout.splitlines()
    assert lines[0] == f"small: highest workload.mean_tokens_per_s with {TIGHT}"
    assert lines[1] == "on the mean of seeds 5, 6, 7"
    rates = [line.split() for line in lines[4 : 4 + len(found.probes)]]
    assert [float(cells[0]) for cells in rates] == [
        float(f"{probe.rate:g}") for probe in found.probes
    ]
    assert [cells[4] for cells in rates] == [
        "met" if probe.meets else "not" for probe in found.probes
    ]
    assert f"capacity: workload.mean_tokens_per_s={found.best.rate:g}, that is" in result.stdout
    assert "goodput of objectives: " in result.stdout
    assert "cost: 14.40 $/h; " in lines[-1]
    found_interval = found.interval
    assert f"interval: {found_interval.low:.4g} to {found_interval.high:.4g}" in result.stdout
    assert all(line.startswith("rate: ") for line in result.stderr.splitlines())


def test_each_seed_by_itself_gives_the_interval(found):
    interval, values = found.interval, found.interval.by_seed
    assert interval == interval_of(values, 0.1)
    assert interval.low <= interval.mean / 1.1
    assert interval.high >= interval.mean * 1.1
    # The capacity of all seeds together lies among those of the single ones, or close by.
    assert min(values) / 1.5 < found.best.requests_per_s < max(values) * 1.5


def test_an_interval_is_students_but_no_narrower_than_the_tolerance():
    # Student's t for two degrees of freedom: 4.3027; the deviation of 8, 10, 12 is 2.
    half = 4.3027 * 2 / 3**0.5
    found = interval_of([8.0, 10.0, 12.0], 0.02)
    assert (found.mean, found.low, found.high) == pytest.approx((10, 10 - half, 10 + half), 1e-4)
    assert interval_of([1.0, 10.0, 19.0], 0.02).low == 0.0
    # Equal capacities are known to within the tolerance only.
    same = interval_of([12.0, 12.0, 12.0], 0.2)
    assert (same.low, same.high) == pytest.approx((10.0, 14.4))


def test_two_seeds_give_no_interval_and_the_text_says_why(found):
    two = replace(found, seeds=(5, 6), interval=None)
    assert "no confidence interval from 2 seeds: give --seeds 3 or more" in capacity_text(two)
    options = {"keep_up": 0.5, "tolerance": 1, "jobs": 1}
    result = helixsim.capacity("small.yaml", TIGHT, seeds=2, **options)
    assert result.above is not None
    assert result.interval is None


def test_a_seed_is_bisected_beyond_the_rates_that_were_tried():
    def capacity_of(limit, known):
        tried = []

        def meets(rate):
            tried.append(rate)
            return rate <= limit

        found = seed_capacity(
            {rate: rate <= limit for rate in known}, meets, 1000.0, 0.01, lambda rate: rate
        )
        return found, tried

    for limit in (50.0, 90.0, 105.0, 180.0):
        found, tried = capacity_of(limit, (80.0, 100.0, 110.0))
        assert limit / 1.01 < found < limit * 1.01
        assert len(tried) < 14
    assert capacity_of(1.0, (80.0,))[0] == 0.0  # far below all that was tried
    assert capacity_of(2000.0, (900.0,))[0] == 1000.0  # the most that there is


def test_a_folder_keeps_the_runs(monkeypatch):
    options = ["--slo", TIGHT, "--seeds", 1, "--keep-up", 0.5, "--tolerance", 1, "--jobs", 1]
    first = json.loads(capacity(*options, "-o", "kept", "--json").stdout)
    runs = len(list(Path("kept/cells").iterdir()))
    assert runs == len(first["probes"])
    stored = json.loads(Path("kept/capacity.json").read_text())
    assert stored["result"] == first
    last = max(Path("kept/cells").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    last.unlink()
    left = []

    def only_missing(todo, *arguments):
        left.extend(todo)
        return outcomes(todo, *arguments)

    monkeypatch.setattr(capacity_runs, "outcomes", only_missing)
    assert json.loads(capacity(*options, "-o", "kept", "--json").stdout) == first
    assert len(left) == 1
    Path("other").mkdir()
    Path("other/file").touch()
    assert "other than a capacity search" in capacity(*options, "-o", "other", code=2).stderr


def test_a_window_shorter_than_a_request_is_refused():
    """Answers of 50 tokens take some seconds: within 1 s, hardly any request begins and ends."""
    short = ["run={warmup: 0 s, duration: 1 s}", "workload.mean_tokens_per_s=300"]
    with pytest.raises(InputError, match=r"window of 1 s .* says too little") as e:
        helixsim.capacity("small.yaml", "ttft_s.p95<=5", seeds=1, overrides=short, jobs=1)
    assert "run.duration: " in str(e.value)
    assert "set run.warmup to" in str(e.value)


def test_a_difference_by_chance_is_no_overload():
    """20 requests of 10 s arrive each second: 200 are in flight, give or take 20."""
    windows = Windows(Path("s.yaml"), 100.0, 50.0, 50.0, keep_up=0.95)
    figures = {"e2e_s": {"mean": 10.0}}

    def probe(*misses):
        return Probe(1.0, 20.0, Verdict({}, 0.9, misses))

    missed = probe("1960 requests finished while 2000 arrived")
    with pytest.raises(InputError, match="a request takes some 10 s"):
        windows.check_missed(missed, {1.0: [outcome(figures, 2000, 1961)]})
    windows.check_missed(missed, {1.0: [outcome(figures, 2000, 1959)]})  # more than 2 x 20
    late = probe("1960 requests finished while 2000 arrived", "ttft_s.p95 is 9")
    windows.check_missed(late, {1.0: [outcome(figures, 2000, 1961)]})


def test_hardly_any_arrivals_say_nothing():
    few = ["workload.mean_tokens_per_s=5"]
    with pytest.raises(InputError, match="says too little"):
        helixsim.capacity("small.yaml", "ttft_s.p95<=0.2", seeds=1, overrides=few, jobs=1)


def test_json_alone_and_the_same_with_processes(found):
    options = ["--slo", TIGHT, "--seeds", 3, "--keep-up", 0.5, "--tolerance", 0.1, "--jobs", 2]
    assert json.loads(capacity(*options, "--json").stdout) == found.to_json()


def test_a_scenario_s_own_classes():
    result = helixsim.capacity("small.yaml", seeds=1, keep_up=0.5, tolerance=1, jobs=1)
    assert [str(limit) for limit in result.objectives] == ["slo.quick.attainment>=0.5"]
    assert "slo.objectives.attainment" not in result.probes[0].verdict.figures


def test_nothing_is_met():
    result = capacity("--slo", "ttft_s.mean<=0.001", "--seeds", 1, "--jobs", 1, code=1)
    rates = [float(line.split()[0]) for line in result.stdout.splitlines()[4:-2]]
    assert rates[:3] == [100, 50, 25]
    assert result.stdout.splitlines()[-1].startswith("no rate meets the objectives, down to")


def test_an_overload_is_no_capacity_however_short_the_waits():
    result = helixsim.capacity(
        "small.yaml",
        "ttft_s.p5<=1e6",
        seeds=1,
        tolerance=0.5,
        overrides=["workload.mean_tokens_per_s=1000", "run.duration=30 s"],
        jobs=1,
    )
    assert result.above is not None
    assert "arrived" in result.above.verdict.misses[0]


def test_a_trace_is_sped_up_until_it_is_too_short():
    rows = "".join(f"{second},20,5\n" for second in range(60))
    Path("trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    trace = ["workload={mode: online, trace: trace.csv}", "run={duration: 20 s, warmup: 2 s}"]
    result = helixsim.capacity(
        "small.yaml", "e2e_s.mean<=100", seeds=1, keep_up=0.5, overrides=trace, jobs=1
    )
    assert result.path == "workload.rate_scale"
    assert [probe.rate for probe in result.probes] == [1.0, 2.0, 59 / 20]
    assert result.probes[1].requests_per_s == 2.0
    assert (result.best, result.above) == (result.probes[-1], None)
    with pytest.raises(InputError, match=r"the trace ends after 14\.75 s at this rate, before"):
        helixsim.capacity("small.yaml", TIGHT, overrides=[*trace, "workload.rate_scale=4"])


NATURAL = "{prompt_tokens: 20, output_tokens: 10, arrivals: constant, "


@pytest.mark.parametrize(
    ("workload", "path", "start", "requests_per_s"),
    [
        ("requests_per_s: 2}", "workload.requests_per_s", 2.0, 2.0),
        ("requests_per_s: 2, rate_scale: 3}", "workload.requests_per_s", 2.0, 6.0),
        (
            "requests_per_s: {steps: [[0 s, 1], [6 s, 3]]}, rate_scale: 3}",
            "workload.rate_scale",
            3.0,
            6.0,
        ),
        (
            "classes: {a: {requests_per_s: 1}, b: {requests_per_s: 3}}}",
            "workload.rate_scale",
            1.0,
            4.0,
        ),
        (
            "requests_per_s: 4, classes: {a: {share: 0.5}, b: {share: 0.5}}}",
            "workload.requests_per_s",
            4.0,
            4.0,
        ),
    ],
)
def test_loads_in_natural_units_are_scaled(workload, path, start, requests_per_s):
    result = helixsim.capacity(
        "small.yaml",
        "ttft_s.mean<=1e-9",
        seeds=1,
        overrides=[f"workload={NATURAL}{workload}", "run={duration: 12 s}"],
        jobs=1,
        tolerance=1.0,
    )
    assert (result.path, result.best) == (path, None)
    assert result.probes[0].rate == start
    assert result.probes[0].requests_per_s == pytest.approx(requests_per_s)
    assert result.probes[1].rate == start / 2
    assert result.probes[1].requests_per_s == pytest.approx(requests_per_s / 2)


def test_objectives_may_be_of_a_class():
    classes = "classes: {a: {share: 0.5}, b: {share: 0.5, prompt_tokens: 900}}}"
    changes = [f"workload={NATURAL}requests_per_s: 1, {classes}", "run={duration: 12 s}"]
    limit = "classes.b.ttft_s.p95<=1e6, slo.quick.attainment>=0.01"
    result = helixsim.capacity(
        "small.yaml", limit, seeds=1, overrides=changes, jobs=1, tolerance=1.0, keep_up=0.5
    )
    figures = result.best.verdict.figures
    assert figures["classes.b.ttft_s.p95"] > figures["classes.a.ttft_s.p95"] > 0
    with pytest.raises(InputError, match=r"unknown figure 'classes\.c\.ttft_s\.p95'"):
        helixsim.capacity("small.yaml", "classes.c.ttft_s.p95<=1", overrides=changes)


def test_a_trace_that_is_repeated_is_never_too_short():
    rows = "".join(f"{second},20,5\n" for second in range(5))
    Path("trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    trace = "workload={mode: online, trace: {file: trace.csv, repeat: fill, scale: 4}}"
    result = helixsim.capacity(
        "small.yaml",
        "e2e_s.mean<=100",
        seeds=1,
        keep_up=0.5,
        overrides=[trace, "run={duration: 10 s, warmup: 2 s}"],
        tolerance=1,
        jobs=1,
    )
    assert result.path == "workload.trace.scale"
    assert [probe.rate for probe in result.probes][:2] == [4.0, 8.0]
    assert result.probes[1].requests_per_s == 8.0


# -- mistakes and ends


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "ttft<=5"], "--slo: unknown figure 'ttft'"),
        (["--slo", TIGHT, "--set", "workload={mode: offline}"], "no arrival rate in a closed loop"),
        (["--slo", TIGHT, "--set", "run.sede=1"], "a scenario has no run.sede"),
        (["--set", "slo={}"], "--slo: needs objectives"),
    ],
)
def test_mistakes(arguments, message):
    result = capacity(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds: at least 1"),
        ({"jobs": 0}, "jobs: at least 1"),
        ({"tolerance": 0.0}, "tolerance: from 0.001 to 1"),
        ({"keep_up": inf}, "keep-up: above 0"),
    ],
)
def test_odd_arguments(options, message):
    with pytest.raises(InputError, match=message):
        helixsim.capacity("small.yaml", TIGHT, **options)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_ends_the_search(jobs):
    overrides = [f"{path}={value}" for path, value in TOO_SLOW.items()]
    with pytest.raises(SimulationError, match=r"mean_tokens_per_s=100 and seed [56]: cluster"):
        helixsim.capacity("small.yaml", TIGHT, seeds=2, overrides=overrides, jobs=jobs)


def test_ctrl_c_tells_what_is_known():
    assert SCENARIO["run"]["seed"] == 5
    arguments = ["small.yaml", "--slo", "ttft_s.mean<=100", "--seeds", "2", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "helixsim", "capacity", *arguments],
        env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    shown = [process.stdout.readline() for _ in range(5)]
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, (shown, stdout, stderr)
    assert stderr == "interrupted: this is the result so far\n"
    assert "capacity: workload.mean_tokens_per_s=" in stdout
