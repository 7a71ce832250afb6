"""`helixsim size` and `helixsim.size`, on machines whose figures can be reckoned by hand.

A request is a prompt of 50 tokens and an answer of one token. The LLM has two layers, on which a
slow machine takes 1 ms a token, so 100 ms a request, or 10 requests a second; a fast one half of
that.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import helixsim
from helixsim.cli import app
from helixsim.errors import InputError
from helixsim.studies.sizing import trials
from helixsim.studies.sizing.search import SizeSearch

LLM = {
    "schema": 1,
    "kind": "llm",
    "name": "toy",
    "num_layers": 2,
    "hidden_size": 16,
    "layer_size": "1 MB",
    "kv_size": "16 B",
}
SCENARIO = {
    "schema": 1,
    "name": "by-hand",
    "llm": "toy.yaml",
    "machine_types": ["slow.yaml", "fast.yaml", "half.yaml"],
    "cluster": {
        "coordinator": {"nic": "10 Gbit/s"},
        "nodes": [{"type": "slow", "count": 2, "name": "s{i}"}, {"type": "fast"}],
        "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 us"}},
    },
    "workload": {
        "requests_per_s": 25,
        "arrivals": "constant",
        "prompt_tokens": 50,
        "output_tokens": 1,
    },
    "run": {"warmup": "1 s", "duration": "11 s", "seed": 3},
    "slo": {"quick": {"ttft": "1 s", "share": 0.95}},
    "dollars_per_hour": {"slow": 1.0, "fast": 2.5, "half": 0.4},
    "watts": {"slow": 300, "fast": 500, "half": 100},
}


def machine(name, ms_per_token, *, max_layers=2):
    return {
        "schema": 1,
        "kind": "machine",
        "name": name,
        "source": "by hand",
        "memory": "1 GB",
        "nic": "10 Gbit/s",
        "disk": "10 GB/s",
        "llms": {
            "toy": {
                "prefill": {"tokens": [0, 1000], "ms": [0, 1000 * ms_per_token]},
                "decode": {"tokens": [0, 1000], "ms": [0, 1]},
                "kv": {
                    "layers": list(range(1, max_layers + 1)),
                    "token_layers": [10**7] * max_layers,
                },
                "batch_limits": {
                    "max_prompts": 1,
                    "max_prompt_tokens": 50,
                    "max_decode_tokens": 100,
                },
            }
        },
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("toy.yaml", LLM)
    write("slow.yaml", machine("slow", 1.0))
    write("fast.yaml", machine("fast", 0.5))
    write("half.yaml", machine("half", 1.0, max_layers=1))
    write("by-hand.yaml", SCENARIO)


def write(name, data):
    Path(name).write_text(yaml.safe_dump(data, sort_keys=False))


def size(**settings):
    return helixsim.size("by-hand.yaml", **({"seeds": 1, "jobs": 1} | settings))


def run(*arguments, code=0):
    command = ["size", "by-hand.yaml", "--seeds", 1, "--jobs", 1, *arguments]
    result = CliRunner().invoke(app, list(map(str, command)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


# -- by hand


def test_one_type_by_hand():
    # 25 requests/s at 10 of each machine: three. Of the arrivals, 0.95 must be served: 23.75/s,
    # for which two are too few, so that three are the proved bound, too.
    found = size(add="slow")
    assert found.machines == {"slow": 3}
    assert found.dollars_per_hour == found.lower_bound_dollars_per_hour == 3.0
    assert found.gap == 0.0
    assert found.watts == 900
    assert found.num_cheaper_untried == 0
    assert found.kinds[0].bound_requests_per_s == pytest.approx(10.0, rel=1e-3)
    assert found.kinds[0].sustained_requests_per_s <= 10.5
    assert set(found.placement.layers.values()) == {(0, 2)}
    assert found.best.by_seed == {3: {"slo.quick.attainment": 1.0}}
    # The time to the first token of a request in a queue of its own, always: 100 ms.
    assert found.best.verdict.figures["ttft_s.p50"] == pytest.approx(0.1, abs=0.001)


def test_the_cheapest_mix_of_two_types():
    # 28 requests/s at 10 and 20: one of each has 30 for 2.50 $; two fast cost 3 $, three slow 3 $.
    found = size(add=["slow", "fast"], rate=28.0, prices={"fast": 1.5})
    assert found.machines == {"slow": 1, "fast": 1}
    assert found.dollars_per_hour == found.lower_bound_dollars_per_hour == 2.5


def test_one_machine_may_be_lost():
    found = size(add="slow", survive=1)
    assert found.machines == {"slow": 4}
    assert found.lower_bound_dollars_per_hour == 4.0


def test_machines_that_hold_the_llm_together():
    # A machine that holds one layer of two takes 50 ms a request: by work alone, three of them
    # serve 30 requests/s. But only pairs serve any.
    found = size(add="half")
    assert found.lower_bound_counts == (3,)
    assert found.machines == {"half": 4}
    assert found.gap == pytest.approx(0.25)
    assert sorted(found.placement.layers.values()) == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert [found.named(trial.counts) for trial in found.tried if not trial.meets] == [{"half": 3}]
    assert found.num_cheaper_untried == 0


def test_without_one_of_a_pair_the_other_pair_serves():
    # 25 requests/s need two pairs, so that a third has to be there.
    found = size(add="half", survive=1)
    assert found.machines == {"half": 6}


def test_own_machines_are_kept_and_paid():
    # Two slow ones and a fast one serve 40 of 45 requests/s for 4.50 $.
    found = size(add="slow", rate=45.0, keep=True)
    assert found.machines == {"slow": 3, "fast": 1}
    assert found.dollars_per_hour == 5.5
    assert {"s0", "s1", "fast-0", "slow-added-0"} == {node.name for node in found.sized.cluster}


def test_own_machines_may_be_enough():
    found = size(rate=30.0, keep=True)
    assert found.machines == {"slow": 2, "fast": 1}
    assert found.gap == 0.0


# -- bounds


def test_no_machine_serves_more_than_its_bound():
    scenario = helixsim.load_scenario("by-hand.yaml")
    found = helixsim.simulate(scenario.with_(placement=helixsim.place(scenario).placement))
    bounds = {kind.name: kind.bound_requests_per_s for kind in size(time_limit_s=1e-9).kinds}
    assert bounds == {"slow": pytest.approx(10, rel=1e-3), "fast": pytest.approx(20, rel=1e-3)}
    overload = scenario.with_(**{"workload.requests_per_s": 90})
    served = helixsim.simulate(overload.with_(placement=helixsim.place(scenario).placement))
    assert found.summary["requests_per_s"] == pytest.approx(25, rel=0.05)
    most = 2 * bounds["slow"] + bounds["fast"] + 3 / 10  # each began one before the window of 10 s
    assert 35 < served.summary["requests_per_s"] <= most


# -- no answer


def test_too_few_machines_are_proved_to_be_too_few():
    found = size(add="slow", max_each=2)
    assert (found.best, found.tried, found.lower_bound_dollars_per_hour) == (None, (), inf)
    text = run("--add", "slow", "--max-each", 2, code=1).output
    assert "no set of these machines serves the rate (proved): allow more of each" in text


def test_what_no_machine_can_do_is_said_with_the_nearest():
    # No request takes less than 100 ms on slow machines.
    text = run("--add", "slow", "--slo", "ttft_s.p50<=0.05", code=1).output
    assert "no set met the objectives; nearest came 3 x slow" in text
    assert "ttft_s.p50 is 0.1" in text
    assert "nothing" in text  # of what machines serve by themselves


def test_the_time_limit_ends_the_search():
    found = size(time_limit_s=1e-9)
    assert (found.ended, found.best, found.tried) == ("time limit", None, ())
    assert found.lower_bound_dollars_per_hour == 3.0
    result = run("--time-limit", "1 us", code=1)
    output = " ".join(result.output.split())
    assert "the search ended (time limit) before any set was simulated to the end" in output


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "number", "best"), [(trials, "outcomes", {}), (SizeSearch, "_bisect", {"slow": 3})]
)
def test_ctrl_c_keeps_the_best_so_far(monkeypatch, where, number, best):
    monkeypatch.setattr(where, number, interrupt)
    found = json.loads(run("--add", "slow", "--json", "-o", "sub.yaml", code=130).stdout)
    assert found["ended"] == "interrupted"
    assert found["machines"] == best
    assert Path("sub.yaml").exists() == bool(best)


# -- the command


def test_the_answer_is_a_scenario_that_meets_the_objectives():
    result = run("--add", "slow", "--rate", "1500/min", "-o", "sub.yaml")
    assert "found    3 x slow: 3.00 $/h, 0.9 kW" in result.output
    assert "proved   no set below 3.00 $/h (that of 3 x slow) serves the rate" in result.output
    assert "every cheaper set that could serve the rate was simulated" in result.output
    sized = helixsim.load_scenario("sub.yaml")
    assert sized.workload.requests_per_s.per_s == 25
    summary = helixsim.simulate(sized).summary
    assert summary["slo"]["quick"]["met"]
    assert summary["cost"]["dollars_per_hour"] == 3.0
    run("--add", "slow", "-o", "sub.yaml", code=2)  # it exists


def test_json_has_everything():
    found = json.loads(run("--add", "half", "--json").stdout)
    assert found["machines"] == {"half": 4}
    assert found["lower_bound_machines"] == {"half": 3}
    assert found["found"]["by_seed"] == {"3": {"slo.quick.attainment": 1.0}}
    assert sorted(found["layout"]["layers"].values()) == [[0, 1], [0, 1], [1, 2], [1, 2]]
    assert [trial["meets"] for trial in found["tried"]].count(True) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "fast"), "--rate: 'fast' is no rate; write requests per time, such as 12/s"),
        (("--rate", "-1"), "rate: a number above 0, not -1.0"),
        (("--prices", "slow"), "--prices: 'slow' is no price"),
        (("--prices", "A100=1"), "--prices: 'A100' is none of the machines"),
        (("--prices", "slow=-1"), "--prices: the price of slow must be 0 or more"),
        (("--add", "slow,quick"), "--add: a machine that may be added: "),
        (("--slo", "slo.chat.attainment>=0.9"), "--slo: unknown figure"),
        (
            ("--set", "workload={mode: offline, prompt_tokens: 50, output_tokens: 1}"),
            "there is no arrival rate in a closed loop",
        ),
        (("--set", "faults={events: [{node: s0, at: 1 s}]}"), "faults.events: name nodes"),
        (
            (
                "--set",
                "cluster.network.links=[{between: [s0, s1], bandwidth: 1 GB/s, latency: 1 s}]",
            ),
            "cluster.network.links[0]: names a node",
        ),
    ],
)
def test_errors_name_the_option_or_the_key(arguments, message):
    result = CliRunner().invoke(app, ["size", "by-hand.yaml", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_machine_without_a_price_is_refused():
    scenario = {**SCENARIO, "dollars_per_hour": {}}
    write("by-hand.yaml", scenario)
    with pytest.raises(InputError, match="no price of slow is known; give one, such as slow="):
        size()


def test_python_refuses_what_the_command_line_cannot_give():
    for settings, message in (
        ({"survive": 2}, "survive: 0 or 1"),
        ({"seeds": 0}, "seeds: at least 1"),
        ({"max_each": 0}, "max-each: at least 1"),
        ({"time_limit_s": 0}, "time-limit: above 0 s"),
    ):
        with pytest.raises(InputError, match=message):
            size(**settings)


def test_the_result_in_one_line_and_as_a_table():
    found = size(add="slow")
    assert repr(found) == (
        "<SizeResult by-hand: 3 x slow for 3.00 $/h; none for less than 3.00 $/h (proved)>"
    )
    assert "3 x slow" in found._repr_html_()
