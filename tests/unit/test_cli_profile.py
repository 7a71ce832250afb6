"""helixsim profile: machine files for a GPU and an LLM."""

from __future__ import annotations

import pytest
from operator_files import write_operator_files
from typer.testing import CliRunner

from helixsim import Scenario
from helixsim.cli import app
from helixsim.profiles.library import load_llm, load_machine_type
from helixsim.profiles.sources import choice, kernel_library


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in a folder with tables; the package of measured kernels is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_library.Aiconfigurator, "version", lambda _: None)
    write_operator_files(tmp_path / "tables")

    def run(*options, llm="llama3.1-8b", gpu="RTX-4090", output="machine.yaml"):
        return CliRunner().invoke(
            app, ["profile", "--llm", llm, "--gpu", gpu, "-o", output, *options]
        )

    return run


def written(folder, llm="llm"):
    value = load_llm(folder / "llm.yaml")
    return load_machine_type(folder / "machine.yaml", llms=[value]).profiles[llm]


def test_from_tables(run, tmp_path):
    result = run("--source", "tables:tables", "--llm-file", "llm.yaml")
    assert result.exit_code == 0, result.output
    profile = written(tmp_path)
    assert (profile.figures, profile.source) == ("tables", "operator times in tables")
    # 32 layers of 0.1 ms and 5 us of attention, embedding 3 us, norm 2 us, head 50 us.
    assert "1 decode at 1,024 tokens         3.4 ms" in result.output
    assert "layers that fit                   32" in result.output
    assert "how far off: operator tables of the pair itself: on recorded runs" in result.output
    assert result.output.endswith("written: llm.yaml, machine.yaml\n")


def test_an_llm_of_which_not_all_layers_fit(run):
    result = run("--source", "roofline", llm="llama3.1-70b", gpu="L40S")
    assert result.exit_code == 0, result.output
    fit = int(result.output.split("layers that fit")[1].split()[0])
    assert f"llama3.1-70b on machine, times of all 80 layers; {fit} fit:\n" in result.output
    assert fit < 80


def test_only_experts_can_be_spread(run):
    result = run("--source", "roofline", "--spread-experts", "--gpus", "2")
    assert result.exit_code == 2
    assert "--spread-experts: llama3.1-8b has no experts" in result.stderr


def test_without_the_package_the_roofline_is_taken_and_said(run, tmp_path):
    result = run("--llm-file", "llm.yaml")
    assert result.exit_code == 0, result.output
    assert written(tmp_path).figures == "roofline"
    assert "figures: roofline from the data sheet of RTX-4090" in result.output
    note = "note: measured times need the package aiconfigurator-core (pip install 'helixsim["
    assert result.output.count(note) == 1
    assert "median" in result.output


def test_the_same_bytes_again(run, tmp_path):
    run("--source", "tables:tables", "--gpus", "2")
    first = (tmp_path / "machine.yaml").read_bytes()
    assert run("--source", "tables:tables", "--gpus", "2", "--force").exit_code == 0
    assert (tmp_path / "machine.yaml").read_bytes() == first


def test_number_formats_and_all_reduces(run, tmp_path):
    options = ("--weights", "fp8", "--kv", "fp8", "--gpus", "2", "--all-reduce-latency", "50 us")
    assert run("--source", "roofline", "--llm-file", "llm.yaml", *options).exit_code == 0
    profile = written(tmp_path)
    assert profile.operators.all_reduce.latency_s == pytest.approx(50e-6)
    # Eight KV heads of 128 keys and 128 values, one byte each.
    assert load_llm(tmp_path / "llm.yaml").kv_bytes_per_token_layer == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--source", "guess"), "no source 'guess'; there are auto, measured, roofline"),
        (("--source", "measured"), "measured times need the package aiconfigurator-core (pip"),
        (("--source", "tables:none"), "none: there is no such folder"),
        (("--gpus", "3", "--source", "roofline"), "has 32 attention heads, which 3 GPUs"),
        (("--llm-file", "machine.yaml"), "--llm-file: must not be the machine file"),
        (("--nic", "10"), "nic"),
        (("--weights", "fp7"), "fp7"),
        (("-o", "tables/dense.csv"), "tables/dense.csv: exists already"),
    ],
)
def test_errors_write_nothing(run, tmp_path, options, message):
    result = run(*options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names in (["tables"], ["cache", "tables"])


def test_measured_times_where_they_are_known(run, tmp_path, monkeypatch):
    from helixsim.profiles.sources.operator_folder import TablesSource

    class Known(TablesSource):
        def __init__(self, cache):
            super().__init__(tmp_path / "tables")

    monkeypatch.setattr(choice, "MeasuredSource", Known)
    result = run()
    assert "figures: operator times in " in result.output
    assert "note:" not in result.output


def test_as_much_memory_for_kv_caches_as_for_a_gpu_of_a_scenario(run, tmp_path):
    # A vocabulary of 262,144 words: the sampler needs more than it does for other LLMs.
    options = ("--source", "roofline", "--llm-file", "llm.yaml")
    result = run(*options, llm="gemma3-27b", gpu="H100-SXM")
    assert result.exit_code == 0, result.output
    document = {
        "name": "one",
        "llm": {"config": "gemma3-27b", "kv_context": 4096},
        "profiles": "roofline",
        "cluster": {
            "coordinator": {"nic": "10 Gbit/s"},
            "nodes": [{"gpu": "H100-SXM", "name": "n"}],
            "network": {"within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
        },
        "workload": {"mode": "offline"},
        "run": {"duration": "1 min"},
    }
    (of_scenario,) = Scenario.from_dict(document).profiles().values()
    assert written(tmp_path).capacities[62] == of_scenario.capacities[62]
