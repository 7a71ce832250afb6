import importlib.util
import re
from pathlib import Path

import pytest

from helixsim.errors import ScenarioError
from helixsim.profiles.throughput import estimate_throughput
from helixsim.scenario import files as shipped
from helixsim.scenario.files import find_scenario, shipped_folder, shipped_scenarios
from helixsim.scenario.load import load_scenario

METHODS = {"helix": "maxflow", "swarm": "swarm", "separate": "random"}


def test_what_ships():
    names = shipped_scenarios()
    assert "quickstart" in names
    assert len(names) == 30
    combinations = [
        f"{placement}-{mode}"
        for placement in (
            "single24-llama2-70b-helix",
            "single24-llama2-70b-swarm",
            "single24-llama2-70b-separate-a100",
            "single24-llama2-70b-separate-l4",
            "single24-llama2-70b-separate-t4",
            "single24-llama1-30b-helix-a100",
            "single24-llama1-30b-helix-l4",
            "single24-llama1-30b-helix-t4",
            "single24-llama1-30b-swarm",
            "geo24-llama2-70b-helix",
            "het42-llama2-70b-helix",
            "het42-llama2-70b-swarm",
        )
        for mode in ("offline", "online")
    ]
    assert set(combinations) <= set(names)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_load(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert (scenario.placement is None) == (name == "fleet")
    estimate_throughput(scenario.llm, scenario.profiles(), scenario.cluster.machine_mix())
    if match := re.fullmatch(r"\w+-llama\d-\d+b-(helix|swarm|separate).*-(\w+)", name):
        assert scenario.scheduler.policy == METHODS[match[1]]
        assert scenario.workload.mode == match[2]
        offline = match[2] == "offline"
        assert scenario.run.warmup_s == (60 if offline else 0)
        assert scenario.run.duration_s == (660 if offline else 1800)


@pytest.mark.parametrize(
    "file", sorted((shipped_folder() / "placements").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_placements_load(file):
    names = [n for n in shipped_scenarios() if n.startswith(file.stem.replace("petals", "helix"))]
    base = next(iter(names), "geo24-llama2-70b-helix-offline")
    overcommitted = "separate" in file.stem
    load_scenario(base, [f"placement.file=placements/{file.name}"])
    if overcommitted:
        with pytest.raises(ScenarioError, match="exceed max_layers"):
            load_scenario(base, ["placement.allow_overcommitted_layers=false"])


def test_a_shipped_scenario_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = find_scenario("quickstart")
    assert load_scenario(file).digest == load_scenario("quickstart").digest


def test_an_installed_package_has_its_own(monkeypatch, tmp_path):
    folder = tmp_path / "shipped_scenarios"
    folder.mkdir()
    (folder / "other.yaml").write_text("")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert shipped_scenarios() == ("other",)
    assert find_scenario("other") == folder / "other.yaml"


def test_a_file_may_have_any_ending(scenario_file):
    file = scenario_file()
    assert load_scenario(file.rename(file.with_suffix(".txt"))).name == "mine"


@pytest.mark.reference
def test_shipped_scenarios_are_those_of_the_published_runs(reference):
    file = Path(__file__).parents[1] / "tools" / "restate_scenarios.py"
    spec = importlib.util.spec_from_file_location("restate_scenarios", file)
    restate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(restate)
    written = restate.scenario_files(reference)
    for name, text in written.items():
        assert (shipped_folder() / name).read_text(encoding="utf-8") == text
    shipped_files = {
        path.relative_to(shipped_folder()).as_posix() for path in shipped_folder().rglob("*.yaml")
    }
    by_hand = {
        "quickstart.yaml",
        "fleet.yaml",
        *(f"generators/{n}24.yaml" for n in ("single", "geo")),
    }
    assert shipped_files - set(written) == by_hand | {"generators/het42.yaml"}
    for placement in restate.placements(reference):
        cluster = f"clusters/{restate.cluster_of(placement)}.yaml"
        body = restate.imported(reference, placement).document["cluster"]
        text = restate.file_text("cluster", restate.CLUSTERS[Path(cluster).stem], body)
        assert text == written[cluster]
