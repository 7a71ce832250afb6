import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import OutputError
from helixsim.output_files import write_whole
from helixsim.scenario.files import shipped_folder
from helixsim.scenario.load import load_scenario

GENERATORS = shipped_folder() / "generators"


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": ":".join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


# -- validate


def test_validate_says_what_a_scenario_is(run, scenario_file):
    result = run("validate", scenario_file(), "--set", "run.seed=3", "--set", "run.warmup=10 s")
    assert result.exit_code == 0
    digest = load_scenario(scenario_file(), ["run.seed=3", "run.warmup=10 s"]).digest
    assert result.stdout.splitlines() == [
        "scenario   mine",
        "LLM        llama2-70b, 80 layers",
        "cluster    8 nodes: 6 x A100, 2 x L4; 2 regions",
        "placement  8 nodes, 1.05 copies of each layer; all links that fit",
        "scheduler  tuned, adaptive, balanced split of the flow",
        "workload   offline, 20 requests to start with",
        "request    750 prompt and 240 output tokens on average",
        "run        100 s, 10 s of it warm-up; seed 3",
        "physics    paper",
        f"digest     {digest}",
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"placement": ...}, "placement  none: a run uses a simple rule"),
        (
            {"workload": {"mode": "online", "mean_tokens_per_s": 70}},
            "workload   online, 70 tokens/s on average",
        ),
        ({"workload.initial_requests": 1}, "workload   offline, 1 request to start with"),
        (
            {"workload": {"mode": "online", "trace": "trace.csv"}},
            "workload   online, 1 request of",
        ),
    ],
)
def test_validate_says_what_differs(run, scenario_file, tmp_path, overrides, line):
    (tmp_path / "trace.csv").write_text(
        "Timestamp,Request tokens,Response tokens,Model,Total tokens,Log Type\n1,5,6,m,11,a\n"
    )
    assert line in run("validate", scenario_file(overrides)).stdout


def test_validate_says_that_the_machines_cannot_hold_the_llm(run, scenario_file):
    few = {"placement": ..., "cluster.nodes": [{"type": "L4", "name": "l"}]}
    validated, ran = (run(command, scenario_file(few)) for command in ("validate", "run"))
    assert (validated.exit_code, validated.stdout) == (2, "")
    assert validated.stderr == ran.stderr
    assert "llama2-70b" in validated.stderr


def test_validate_takes_the_name_of_a_shipped_scenario(run):
    assert run("validate", "quickstart").stdout.startswith("scenario   quickstart\n")


def test_a_mistake_is_told_without_a_traceback(run, scenario_file):
    file = scenario_file({"run.seed": "x"})
    result = run("validate", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{file}: run.seed: should be a valid integer, not 'x'\n"


def test_a_process_ends_with_the_code(scenario_file):
    code = "import sys; from helixsim.cli import main; main()"
    result = python(code, "validate", "nothing.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "nothing.yaml: there is no such file\n"
    assert python(code, "validate", str(scenario_file())).returncode == 0


def test_an_interrupt_ends_with_130(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("helixsim.scenario.load.load_scenario", interrupt)
    result = run("validate", "quickstart")
    assert (result.exit_code, result.output) == (130, "")


def test_a_mistake_of_ours_is_not_hidden(run, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("helixsim.scenario.load.load_scenario", fail)
    assert isinstance(run("validate", "quickstart").exception, ZeroDivisionError)


# -- schema


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("scenario", "workload"),
        ("cluster", "nodes"),
        ("generator", "machines"),
        ("placement", "layers"),
        ("llm", "num_layers"),
        ("machine", "memory"),
    ],
)
def test_schema_prints_a_json_schema(run, kind, key):
    schema = json.loads(run("schema", "--kind", kind).stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert key in schema["properties"]
    assert "schema" in schema["required"]


def test_schema_is_that_of_scenarios_by_default(run):
    assert run("schema").stdout == run("schema", "--kind", "scenario").stdout
    assert run("schema", "--kind", "cat").exit_code == 2


# -- generate-cluster


def test_generate_cluster_writes_a_cluster_file(run, tmp_path, scenario_file):
    file = tmp_path / "cluster.yaml"
    spec = GENERATORS / "geo24.yaml"
    result = run("generate-cluster", spec, "-o", file)
    assert (result.exit_code, result.output) == (0, "")
    changes = {"placement": ..., "cluster": {"file": str(file)}}
    cluster = load_scenario(scenario_file(changes)).cluster
    inline = load_scenario(scenario_file(changes | {"cluster": {"generate": str(spec)}})).cluster
    assert cluster == inline
    assert run("generate-cluster", spec, "-o", file, "--seed", 7, "--force").exit_code == 0
    assert yaml.safe_load(file.read_text())["network"]["seed"] == 7
    assert run("generate-cluster", spec, "-o", file, "--explicit-links", "--force").exit_code == 0
    assert len(yaml.safe_load(file.read_text())["network"]["links"]) == 25 * 24 / 2


def test_a_file_is_not_overwritten_unasked(run, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("mine")
    result = run("generate-cluster", GENERATORS / "single24.yaml", "-o", file)
    assert (result.exit_code, file.read_text()) == (2, "mine")
    assert result.stderr == f"{file}: exists already; name another file, or add --force\n"


def test_an_output_must_have_a_folder(run, tmp_path):
    result = run("generate-cluster", GENERATORS / "single24.yaml", "-o", tmp_path / "no" / "x.yaml")
    assert result.exit_code == 2
    assert "make it first" in result.stderr
    result = run("generate-cluster", GENERATORS / "single24.yaml", "-o", tmp_path, "--force")
    assert result.exit_code == 2
    assert "is no regular file" in result.stderr


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.txt"
    write_whole(file, "ä\n")
    assert file.read_bytes() == "ä\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800" * 100_000, overwrite=True)
    assert file.read_text(encoding="utf-8") == "ä\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"x\.txt: cannot be written: No space left"):
        write_whole(tmp_path / "x.txt", "text")
    assert list(tmp_path.iterdir()) == []


# -- import-helix


def import_options(reference, placement, cluster):
    folder = reference / "placements" / placement
    return (
        "import-helix",
        *("--cluster", reference / "clusters" / f"{cluster}.ini"),
        *("--machines", reference / "clusters" / "machine_profiles.ini"),
        *("--solution", folder / "solution.ini"),
        *("--links", folder / "simulator_cluster.ini"),
    )


@pytest.mark.reference
def test_import_helix_writes_a_scenario(run, reference, tmp_path):
    file = tmp_path / "mine.yaml"
    options = import_options(reference, "single24-llama2-70b/helix", "single24")
    result = run(*options, "--llm", "llama2-70b", "-o", file)
    assert (result.exit_code, result.output) == (0, "")
    assert load_scenario(file).name == "mine"
    assert run(*options, "--llm", "llama2-70b", "-o", file).exit_code == 2


@pytest.mark.reference
def test_import_helix_tells_of_overcommitted_nodes(run, reference, tmp_path):
    file = tmp_path / "mine.yaml"
    options = import_options(reference, "single24-llama2-70b/separate-l4", "single24-l4")
    result = run(*options, "--llm", "llama2-70b", "-o", file)
    assert result.exit_code == 0
    assert "note: compute_node_2, compute_node_3" in result.stderr
    assert "--set placement.allow_overcommitted_layers=true" in result.stderr
    assert run("validate", file).exit_code == 2
    setting = ("--set", "placement.allow_overcommitted_layers=true")
    assert run("validate", file, *setting).exit_code == 0


def test_import_helix_names_a_missing_file(run, tmp_path):
    files = [
        part
        for name in ("cluster", "machines", "solution", "links")
        for part in (f"--{name}", tmp_path / name)
    ]
    result = run("import-helix", *files, "--llm", "llama2-70b", "-o", tmp_path / "x.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{tmp_path / 'cluster'}: there is no such file\n"


# -- start-up


SLOW = ("pydantic", "yaml", "pint", "numpy", "networkx", "pandas", "simpy", "mip", "pyarrow")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        # Typer itself needs pydantic to parse arguments.
        (["validate", "--help"], {"pydantic"}),
        (["validate", "quickstart"], {"pydantic", "yaml"}),
    ],
)
def test_commands_import_only_what_they_need(arguments, allowed):
    code = (
        "import sys\n"
        "from helixsim.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code\n"
        f"for name in set({SLOW}) & set(sys.modules):\n"
        "    print(name, file=sys.stderr)\n"
    )
    result = python(code, *arguments)
    assert result.stdout
    assert set(result.stderr.split()) <= allowed
