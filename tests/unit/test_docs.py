"""README and docs: code runs, files load, tables and links are as they should be."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helixsim import load_scenario, place, simulate
from helixsim.cli import app
from helixsim.llms.families import FAMILIES
from helixsim.scenario.schema import FILE_KINDS
from helixsim.scenario.workload import resolve_workload
from helixsim.scenario.workload_spec import WorkloadSpec
from helixsim.traces import TRACE_FORMATS, Holds
from helixsim.yaml_files import parse_yaml, validate

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from scenario_reference import HEADING, anchor_of, check_kinds, filled  # noqa: E402

NAMED_FILE = re.compile(
    r"<!-- file: (?P<kind>\w+)(?: (?P<name>\S+))? -->\n```yaml\n(?P<text>.*?)```", re.DOTALL
)
CODE = re.compile(r"^( *)```(python|sh)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
COLUMNS = re.compile(r"<!-- columns: (\w+) -->\n(.*?)<!-- end of columns -->", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def pages(paths=PAGES):
    return pytest.mark.parametrize("page", paths, ids=lambda page: page.name)


def code_blocks(language):
    """Code of this language on all pages, with an id of its own."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in CODE.finditer(text):
            indent, found, code = block.groups()
            if found == language:
                line = text.count("\n", 0, block.start()) + 1
                code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
                yield pytest.param(code, id=f"{page.name}:{line}")


@pytest.mark.parametrize("code", list(code_blocks("python")))
def test_python_runs(code, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def helixsim_commands():
    for block in code_blocks("sh"):
        for line in block.values[0].splitlines():
            if (command := line.partition("#")[0]).strip().startswith("helixsim "):
                yield pytest.param(command.strip(), id=f"{block.id} {command.strip()}")


@pytest.fixture(scope="module")
def short_results(tmp_path_factory):
    """A folder of results."""
    folder = tmp_path_factory.mktemp("results") / "short"
    scenario = load_scenario("quickstart", ["run.duration=20 s", "run.warmup=5 s"])
    simulate(scenario).write(folder)
    return folder


@pytest.mark.parametrize("command", list(helixsim_commands()))
def test_commands_are_accepted(command, tmp_path, monkeypatch, short_results):
    import shlex

    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{300 + i},{20 + i}\n" for i in range(50))
    for name in ("my-lengths.csv", "azure_conv_lengths.csv.gz"):
        Path(name).write_text("input_tokens,output_tokens\n" + rows)
    for page in PAGES:
        for file in NAMED_FILE.finditer(page.read_text("utf-8")):
            if file["name"]:
                Path(file["name"]).write_text(file["text"])
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("plot", "report"):  # of results that a command before them wrote
        for name in {"one", "two", "calibrated", "published", "tuned"} & set(arguments):
            shutil.copytree(short_results, name)
    if arguments[0] == "run":  # loads all that a run needs, without the wait
        keep = [i for i, text in enumerate(arguments) if text == "--set"]
        sets = [arguments[i + k] for i in keep for k in (0, 1)]
        arguments = ["validate", arguments[1], *sets]
    if arguments[0] == "plan" and "flow" not in arguments:  # the same options, without the wait
        if "--write-front" in arguments:
            del arguments[(at := arguments.index("--write-front")) : at + 2]
        arguments += ["--objective", "flow", "--time-limit", "1 s"]
    if arguments[0] == "size":  # reckons the bound, without the wait for an answer
        arguments += ["--time-limit", "1 ms"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == int(arguments[0] == "size"), result.output


@pages()
def test_named_files_load(page, tmp_path):
    files = list(NAMED_FILE.finditer(page.read_text("utf-8")))
    for number, file in enumerate(files):
        (tmp_path / (file["name"] or f"{number}.yaml")).write_text(file["text"])
    for number, file in enumerate(files):
        name = file["name"] or f"{number}.yaml"
        if file["kind"] == "scenario":
            scenario = load_scenario(tmp_path / name, ["run.duration=20 s", "run.warmup=0 s"])
            scenario = place(scenario)
            assert simulate(scenario).summary["decode_tokens_per_s"] > 0
        else:
            validate(FILE_KINDS[file["kind"]], parse_yaml(file["text"], name), name)


@pytest.mark.parametrize("page", ["traces.md", "workload.md"])
def test_workload_lines_are_valid(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    lines = re.findall(r"^workload: .*$", text, re.MULTILINE)
    assert lines
    for line in lines:
        validate(WorkloadSpec, parse_yaml(line, line)["workload"], line)


def test_rates_and_lengths_in_tables_are_valid(tmp_path):
    text = (ROOT / "docs" / "workload.md").read_text("utf-8")
    (tmp_path / "lengths.csv").write_text("prompt\n100\n200\n")
    for key, count in (("requests_per_s", 4), ("prompt_tokens", 7)):
        head = "`requests_per_s`" if key == "requests_per_s" else "value"
        table = text.partition(f"| {head} |")[2].partition("\n\n")[0]
        values = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
        assert len(values) == count
        workload = {"requests_per_s": 1, "prompt_tokens": 9, "output_tokens": 9}
        for value in values:
            spec = validate(WorkloadSpec, workload | {key: parse_yaml(value, value)}, value)
            resolve_workload(spec, tmp_path / "x.yaml", 60.0)


def test_every_trace_format_is_documented():
    text = (ROOT / "docs" / "traces.md").read_text("utf-8")
    units = {1: "seconds", 1000: "milliseconds", 10**9: "nanoseconds"}
    for name in TRACE_FORMATS.shipped_names():
        form = TRACE_FORMATS.get(name)
        columns = ", ".join(f"`{column}`" for column in form.columns)
        times = "none" if form.holds is Holds.LENGTHS else "counts"
        if form.holds is Holds.REQUESTS:
            times = "date and time" if form.wall_clock else units[form.ticks_per_s]
        assert f"| {form.title} | `{name}` | {columns} | {times}" in text


def test_every_family_of_llms_is_documented():
    text = (ROOT / "docs" / "llms-and-machines.md").read_text("utf-8")
    (known,) = re.findall(r"These values of `model_type` are understood: (.*?);", text, re.S)
    assert sorted(re.findall(r"`(\w+)`", known)) == sorted(FAMILIES)


@pages()
def test_tables_of_keys_are_current(page):
    text = page.read_text("utf-8")
    assert filled(text) == text, "run tests/tools/scenario_reference.py"


def test_all_kinds_of_files_are_documented():
    check_kinds([page.read_text("utf-8") for page in PAGES])


@pytest.fixture(scope="module")
def result():
    scenario = load_scenario("quickstart", ["run.duration=40 s", "run.warmup=10 s"])
    return simulate(scenario, record_iterations=True)


def documented_columns():
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    return {
        name: re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
        for name, rows in COLUMNS.findall(text)
    }


def test_columns_are_those_of_the_results(result):
    real = {name: list(columns.names) for name, columns in result.tables.items()}
    real |= {"summary": list(result.summary), "manifest": list(result.manifest)}
    assert documented_columns() == real


def test_statistics_are_those_of_the_results(result):
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    for name in [*result.summary["ttft_s"], *result.summary["requests"]]:
        assert f"`{name}`" in text
    for reason in result.summary["rejected_for"]:
        assert f"`{reason}` (" in text
        assert f"`rejected: {reason}`" in text


@pages()
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            titles = HEADING.findall(target.read_text("utf-8"))
            assert anchor in {anchor_of(title) for title in titles}, f"{path}#{anchor}"


def test_quickstart_prints_what_the_readme_shows():
    done = subprocess.run(
        [sys.executable, "-m", "helixsim", "run", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = re.search(r"```text\n(quickstart.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert shown is not None
    assert done.stdout == shown[1]


def test_readme_and_ci_run_the_same_tests():
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(
        r"^\.venv/bin/pip install .*'\.\[test\]' && \.venv/bin/(.*)$", readme, re.M
    )
    assert f"check {command}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_schema_command_knows_the_documented_kinds():
    from typer.testing import CliRunner

    for kind in FILE_KINDS:
        result = CliRunner().invoke(app, ["schema", "--kind", kind])
        assert result.exit_code == 0
        assert json.loads(result.output)["title"] == f"helixsim {kind} file"


def names_in_glossary():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    return sorted(set(re.findall(r"`(helix(?:sim|real)(?:\.\w+)+)`", text)))


@pytest.mark.parametrize("name", names_in_glossary())
def test_names_in_the_glossary_exist(name):
    assert pkgutil.resolve_name(name) is not None
