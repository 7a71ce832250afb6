"""The command that draws placements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scenario_data import PLACEMENT
from typer.testing import CliRunner

from helixsim.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def show(tmp_path):
    def show(*arguments):
        return CliRunner().invoke(app, ["show", *map(str, arguments)])

    return show


@pytest.fixture
def placement_file(tmp_path):
    file = tmp_path / "my: placement #1.yaml"
    document = {"schema": 1, "kind": "placement", **PLACEMENT}
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.mark.parametrize("suffix", ["svg", "html", "PNG"])
def test_show_writes_a_picture_and_says_what_bounds(show, scenario_file, tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    result = show(scenario_file(), "-o", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "Max flow 762.8 tokens/s at typical batches, bound by 1 link (a100-4 → far-0).\n"
        "Drawn is the balanced split of the flow, which requests follow.\n"
    )
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG") if suffix == "PNG" else b"a100-4" in content


def test_show_writes_graphs(show, scenario_file, tmp_path):
    for suffix in ("json", "graphml"):
        result = show(scenario_file(), "-o", tmp_path / f"x.{suffix}")
        assert (result.exit_code, result.output) == (0, "")
    nodes = json.loads((tmp_path / "x.json").read_text())["nodes"]
    assert [node["id"] for node in nodes] == [*PLACEMENT["layers"], "coordinator"]


def test_values_can_be_set(show, scenario_file, tmp_path):
    setting = "cluster.network.across.bandwidth=10 Gbit/s"
    result = show(scenario_file(), "-o", tmp_path / "x.svg", "--set", setting)
    assert "the compute of 1 node at layers 73-79 (far-1)" in result.stdout


def test_a_placement_is_laid_over_the_cluster_of_a_scenario(
    show, scenario_file, placement_file, tmp_path
):
    scenario = scenario_file({"placement": ...})
    file = tmp_path / "x.svg"
    result = show(placement_file, "--scenario", scenario, "-o", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Max flow 762.8" in result.stdout
    other = scenario_file({"cluster.nodes": [{"type": "A100", "count": 4}], "placement": ...})
    result = show(placement_file, "--scenario", other, "-o", file, "--force")
    assert result.exit_code == 2
    assert "the cluster has no such node" in result.stderr


def test_a_placement_alone_is_drawn_without_flow(show, placement_file, tmp_path):
    result = show(placement_file, "-o", tmp_path / "x.svg")
    assert result.exit_code == 0
    assert result.stdout.startswith("No cluster is given: machine types, flow and bottleneck are")
    result = show(placement_file, "-o", tmp_path / "x.json")
    assert (result.exit_code, "--scenario" in result.stderr) == (2, True)


def test_mistakes_are_told_and_nothing_is_written(show, scenario_file, placement_file, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    scenario = scenario_file({"placement": ...})
    for arguments, message in (
        ((scenario, "-o", folder / "x.pdf"), ".png, .svg or .html"),
        ((scenario, "-o", folder / "no" / "x.svg"), "make it first"),
        (("quickstar", "-o", folder / "x.svg"), "did you mean 'quickstart'?"),
        ((scenario, "-o", folder / "x.svg", "--scenario", scenario), "goes with a placement file"),
        ((placement_file, "-o", folder / "x.svg", "--set", "a=1"), "--set changes a scenario"),
    ):
        result = show(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert list(folder.iterdir()) == []


def test_a_file_is_not_overwritten_unasked(show, scenario_file, tmp_path):
    file = tmp_path / "x.svg"
    file.write_text("mine")
    result = show(scenario_file(), "-o", file)
    assert (result.exit_code, file.read_text()) == (2, "mine")
    assert show(scenario_file(), "-o", file, "--force").exit_code == 0
    assert file.read_text().startswith("<?xml")


def test_every_process_writes_the_same(scenario_file, tmp_path):
    scenario = scenario_file()
    code = (
        "import sys\n"
        "from helixsim.cli import app\n"
        "for suffix in ('html', 'graphml', 'json'):\n"
        "    app(['show', sys.argv[1], '-o', sys.argv[2] + suffix], standalone_mode=False)\n"
    )
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, scenario, f"{tmp_path}/{seed}."]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    for suffix in ("html", "graphml", "json"):
        assert (tmp_path / f"0.{suffix}").read_bytes() == (tmp_path / f"1.{suffix}").read_bytes()


def test_help_does_not_wait_for_matplotlib():
    code = (
        "import sys\n"
        "from helixsim.cli import app\n"
        "try:\n"
        "    app(['show', '--help'])\n"
        "except SystemExit:\n"
        "    assert not {'matplotlib', 'networkx', 'numpy'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    assert (
        b"SCENARIO|PLACEMENT"
        in subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
