"""Nodes that a scenario names by their GPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from helixsim import Scenario, load_scenario, place, simulate
from helixsim.errors import ScenarioError
from helixsim.hardware.catalogue import load_gpu
from helixsim.metrics.summary_text import summary_text
from helixsim.profiles.sources import kernel_library

RULE = {"bandwidth": "25 Gbit/s", "latency": "0.1 ms"}
FLEET = {
    "schema": 1,
    "name": "fleet",
    "llm": {"config": "llama3.1-8b"},
    "cluster": {
        "coordinator": {"region": "east", "nic": "25 Gbit/s"},
        "nodes": [
            {"gpu": "l40s", "gpus": 2, "count": 2, "region": "east"},
            {"gpu": "RTX-4090", "region": "west", "name": "r"},
        ],
        "network": {"within": RULE, "across": {"bandwidth": "1 Gbit/s", "latency": "30 ms"}},
    },
    "workload": {"requests_per_s": 2, "prompt_tokens": 400, "output_tokens": 50},
    "profiles": "roofline",
}


def fleet(nodes=None, base_dir=".", **changes):
    document = copy.deepcopy(FLEET) | changes
    if nodes is not None:
        document["cluster"]["nodes"] = nodes
    return Scenario.from_dict(document, base_dir)


def test_machine_types_follow_from_the_gpus():
    scenario = fleet()
    assert [node.name for node in scenario.cluster] == ["l40sx2-0", "l40sx2-1", "r"]
    assert scenario.cluster.machine_mix() == {"L40Sx2": 2, "RTX-4090": 1}
    l40s, rtx = load_gpu("L40S"), load_gpu("RTX-4090")
    machine = scenario.machine_types["L40Sx2"]
    assert machine.memory_bytes == pytest.approx(2 * l40s.memory_bytes)
    assert scenario.watts == {"L40Sx2": 2 * l40s.power_w, "RTX-4090": rtx.power_w}
    assert scenario.dollars_per_hour["L40Sx2"] == pytest.approx(2 * l40s.dollars_per_hour)
    profile = machine.profiles["llama3.1-8b"]
    assert profile.operators.tensor_parallel == 2
    assert profile.max_layers == 32
    # vLLM 0.19 had room for 41,408 tokens beside all layers on an RTX 4090.
    on_rtx = scenario.machine_types["RTX-4090"].profiles["llama3.1-8b"]
    assert on_rtx.capacity(32).kv_token_layers / 32 == pytest.approx(41_408, rel=0.05)


def test_defaults_of_such_a_scenario():
    scenario = fleet()
    assert (scenario.physics, scenario.engine.name) == ("calibrated", "vllm")
    assert (scenario.run.duration_s, scenario.run.warmup_s) == (600.0, 60.0)
    assert scenario.workload.mode == "online"
    assert scenario.placement is None
    assert place(scenario).placement.layers == {
        "l40sx2-0": (0, 32),
        "l40sx2-1": (0, 32),
        "r": (0, 32),
    }
    assert fleet(physics="paper").physics == "paper"
    short = fleet(run={"duration": "5 min"})
    assert (short.run.duration_s, short.run.warmup_s) == (300.0, 30.0)
    assert fleet(run={"seed": 3}).run.duration_s == 600.0
    assert fleet(run={"warmup": "0 s"}).run.warmup_s == 0.0


def test_a_run_says_what_its_figures_are():
    summary = simulate(place(fleet(run={"duration": "30 s"}))).summary
    assert summary["figures"] == {"L40Sx2": "roofline", "RTX-4090": "roofline"}
    (warning,) = summary["warnings"]
    assert warning.startswith(
        "step times of L40Sx2, RTX-4090 are a roofline reckoned from the data sheet: such figures "
        "were off by "
    )
    assert f"warning: {warning}" in summary_text(summary)
    assert summary["cost"]["prices"] == "usual"
    assert summary["energy"]["kilowatts"] == pytest.approx(
        (4 * load_gpu("L40S").power_w + load_gpu("RTX-4090").power_w) / 1000
    )


def test_one_decode_by_hand():
    # One request on one GPU: each decode reads all weights once, 16.06 GB at 1,008 GB/s, of
    # which a GPU reaches 70 to 95 %. (The operator tables of this pair say 16.9 ms a token.)
    scenario = fleet(
        [{"gpu": "RTX-4090", "name": "r"}],
        workload={"requests_per_s": 0.2, "prompt_tokens": 400, "output_tokens": 50},
        run={"duration": "60 s"},
    )
    gpu = load_gpu("RTX-4090")
    weights = 2 * (8_030_261_248 - 128_256 * 4096)  # but for the embedding, of which a row is read
    least_s = weights / gpu.memory_bytes_per_s
    summary = simulate(place(scenario)).summary
    assert least_s / 0.95 < summary["tpot_s"]["p50"] < least_s / 0.7


@pytest.mark.parametrize("preset", ["published", "tuned"])
def test_a_pass_without_prompts_takes_no_prefill_in_the_papers_physics(preset):
    nodes = [{"gpu": "RTX-4090", "name": "r", "region": "east"}]
    workload = {"requests_per_s": 0.1, "prompt_tokens": 400, "output_tokens": 50}
    scenario = fleet(nodes, physics="paper", scheduler={"preset": preset}, workload=workload)
    placed = place(scenario.with_(run={"duration": "60 s", "warmup": "0 s"}))
    (profile,) = placed.profiles().values()
    # There a single decode counts double. A round trip is 0.2 ms.
    by_hand = 2 * 32 * profile.decode(1) + 0.0002
    assert simulate(placed).summary["tpot_s"]["p50"] == pytest.approx(by_hand, rel=0.02)


def test_gpus_of_a_file_and_their_digest(tmp_path):
    mine = {
        "kind": "gpu",
        "name": "mine",
        "memory": "48 GB",
        "bandwidth": "900 GB/s",
        "peak_tflops": {"bf16": 200},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    nodes = [{"gpu": "mine", "name": "m"}]
    scenario = fleet(nodes, tmp_path, gpus=["mine.yaml"])
    assert scenario.cluster.node("m").machine_type == "mine"
    assert (scenario.dollars_per_hour, scenario.watts) == ({}, {})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine | {"bandwidth": "800 GB/s"}))
    assert fleet(nodes, tmp_path, gpus=["mine.yaml"]).digest != scenario.digest


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"gpu": "h100", "name": "n"}], "nodes[0].gpu: 'h100' is the name of several GPUs"),
        ([{"gpu": "L40Z"}], "nodes[0].gpu: the catalogue has no GPU 'L40Z'; did you mean 'L40'?"),
        ([{"gpu": "L4", "gpus": 3}], "nodes[0].gpus: llama3.1-8b has 32 attention heads, which 3"),
        ([{"type": "A100"}], "nodes[0].type: machine type 'A100' has no profile for llama3.1-8b"),
        ([{"type": "A100", "gpu": "L4"}], "nodes[0].gpu: give either type or gpu"),
        ([{"name": "n"}], "nodes[0].type: this key is missing (or gpu instead)"),
        (
            [{"gpu": "L4", "gpus": 2, "spread_experts": True}],
            "nodes[0].spread_experts: llama3.1-8b has no experts; leave the key out",
        ),
        ([{"type": "A100", "gpus": 2}], "nodes[0].gpus: is for a node with gpu"),
    ],
)
def test_mistakes(nodes, message):
    with pytest.raises(ScenarioError) as error:
        fleet(nodes)
    assert f"cluster.{message}" in str(error.value)


def test_experts_that_are_spread_make_another_machine_type():
    whole = {"gpu": "H100-SXM", "gpus": 4, "name": "whole", "spread_experts": True}
    part = {"gpu": "H100-SXM", "gpus": 4, "name": "part"}
    scenario = fleet([part, whole], llm="qwen3-30b-a3b")
    assert scenario.cluster.machine_mix() == {"H100-SXMx4": 1, "H100-SXMx4-spread": 1}
    profiles = scenario.profiles()
    experts = [
        profiles[name].operators.kinds[0].experts for name in ("H100-SXMx4", "H100-SXMx4-spread")
    ]
    assert experts[0](64) != experts[1](64)


@pytest.mark.parametrize("order", [1, -1])
def test_a_machine_type_and_a_gpu_of_the_same_name_are_told_apart(order):
    nodes = [{"type": "L4", "name": "a"}, {"gpu": "L4", "name": "b"}][::order]
    with pytest.raises(ScenarioError, match=r"cluster\.nodes\[1\]\..*other nodes have the .* 'L4'"):
        fleet(nodes, llm={"config": "llama2-70b"})


def test_two_gpus_of_the_same_name_are_told_apart(tmp_path):
    mine = {
        "kind": "gpu",
        "name": "RTX-4090",
        "memory": "48 GB",
        "bandwidth": "900 GB/s",
        "peak_tflops": {"bf16": 200},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    nodes = [{"gpu": "RTX-4090", "name": "a"}, {"gpu": "mine.yaml", "name": "b"}]
    with pytest.raises(ScenarioError, match="another GPU of this cluster is named 'RTX-4090', too"):
        fleet(nodes, tmp_path)
    assert fleet(nodes[1:], tmp_path).cluster.machine_mix() == {"RTX-4090": 1}


def test_files_of_gpus_are_files_each_with_its_own_name(tmp_path):
    mine = {"kind": "gpu", "memory": "48 GB", "bandwidth": "900 GB/s", "peak_tflops": {"bf16": 200}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(mine | {"name": "Mine-1"}))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(mine | {"name": "mine1"}))
    with pytest.raises(ScenarioError, match=r"gpus\[1\]: duplicate GPU 'mine1'"):
        fleet(base_dir=tmp_path, gpus=["a.yaml", "b.yaml"])
    with pytest.raises(ScenarioError, match=r"gpus\[0\]: 'L4' is not a file ending in \.yaml"):
        fleet(base_dir=tmp_path, gpus=["L4"])


def test_measured_times_that_are_not_known_name_the_key_to_change(monkeypatch):
    monkeypatch.setattr(kernel_library.Aiconfigurator, "version", lambda _: None)
    with pytest.raises(ScenarioError) as error:
        fleet([{"gpu": "L40S"}], profiles="measured")
    assert str(error.value).endswith("use the roofline instead (profiles: roofline)")
    assert "--source" not in str(error.value)


def test_a_class_of_users_is_where_machines_or_front_ends_are():
    users = {"share": 1, "prompt_tokens": 400, "output_tokens": 50}
    for region in ("east", "west"):
        fleet(workload={"requests_per_s": 2, "classes": {"chat": users | {"region": region}}})
    message = (
        r"workload\.classes\.chat\.region: no machine and no front end is in the region 'eastt'; "
        "did you mean 'east'"
    )
    with pytest.raises(ScenarioError, match=message):
        fleet(workload={"requests_per_s": 2, "classes": {"chat": users | {"region": "eastt"}}})


def test_an_llm_without_architecture_has_no_times():
    with pytest.raises(ScenarioError, match="follow from the LLM's config"):
        fleet(llm="llama2-70b")


def test_unknown_sources_are_named():
    with pytest.raises(ScenarioError, match="profiles: no source 'guess'; there are auto"):
        fleet(profiles="guess")


def test_operator_tables_of_a_folder(reference):
    folder = reference / "operator_profiles" / "rtx4090" / "llama3.1-8b" / "tp1"
    nodes = [{"gpu": "RTX-4090", "name": "r"}]
    scenario = fleet(nodes, profiles=f"tables:{folder}")
    profile = scenario.machine_types["RTX-4090"].profiles["llama3.1-8b"]
    assert profile.figures == "tables"
    assert str(Path("rtx4090")) in profile.source


def test_the_scenario_can_be_changed_and_written(tmp_path):
    scenario = fleet()
    assert scenario.with_(run={"duration": "20 s"}).run.duration_s == 20.0
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(dict(scenario.document)))
    assert load_scenario(tmp_path / "fleet.yaml").digest == scenario.digest
