"""Results as files: equal in both formats, whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from builders import make_scenario

from helixsim.errors import OutputError
from helixsim.metrics import output
from helixsim.metrics.output import OutputFolder
from helixsim.models.simulation import simulate

TABLES = ["iterations", "links", "nodes", "requests", "timeline"]


@pytest.fixture(scope="module")
def result():
    """A run with a rejected request and one in flight, so that some cells are empty."""
    scenario = make_scenario(
        {"a": (0, 1), "b": (1, 2)},
        requests=[(0.0, 3, 2), (1.0, 20_000, 1), (2.0, 2, 90)],
        duration_s=50.0,
    )
    return simulate(scenario, record_iterations=True)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_the_files_of_a_result(result, tmp_path, table_format):
    result.write(tmp_path / "out", table_format=table_format)
    assert listing(tmp_path) == ["out"]
    names = sorted(
        [f"{name}.{table_format}" for name in TABLES] + ["manifest.json", "summary.json"]
    )
    assert listing(tmp_path / "out") == names
    assert json.loads((tmp_path / "out/summary.json").read_text()) == result.summary


def test_iterations_only_if_they_were_recorded(tmp_path):
    scenario = make_scenario({"a": (0, 1)}, requests=[(0.0, 3, 2)])
    simulate(scenario).write(tmp_path / "out")
    assert "iterations.parquet" not in listing(tmp_path / "out")


@pytest.mark.parametrize("name", TABLES)
def test_parquet_csv_and_frames_are_equal(result, tmp_path, name):
    result.write(tmp_path / "p", table_format="parquet")
    result.write(tmp_path / "c", table_format="csv")
    frame = getattr(result, name)
    assert len(frame) > 0
    parquet = pd.read_parquet(tmp_path / f"p/{name}.parquet")
    pd.testing.assert_frame_equal(parquet, frame, check_exact=True, check_dtype=False)
    with (tmp_path / f"c/{name}.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == list(frame.columns)
    read = {"q": int, "d": lambda cell: float(cell or "nan"), "s": lambda cell: cell or None}
    for column, cells in zip(header, zip(*rows, strict=True), strict=True):
        code = result.tables[name].types[header.index(column)]
        found = pd.Series([read[code](cell) for cell in cells], name=column)
        pd.testing.assert_series_equal(found, frame[column], check_exact=True, check_dtype=False)


def test_empty_tables_keep_their_types(tmp_path):
    scenario = make_scenario({"a": (0, 1)}, requests=[(90.0, 1, 1)], duration_s=5.0)
    simulate(scenario).write(tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out/requests.parquet")
    assert len(frame) == 0
    assert (frame["arrival_s"].dtype, frame["request"].dtype) == ("float64", "int64")


def test_the_manifest_says_what_was_run(result, tmp_path):
    result.write(tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest) == [
        "schema",
        "created_utc",
        "seed",
        "partial",
        "scenario_sha256",
        "scenario",
        "versions",
    ]
    assert (manifest["seed"], manifest["partial"]) == (0, False)
    assert manifest["scenario"] == {"name": "toy"}
    assert set(manifest["versions"]) >= {"helixsim", "python", "simpy", "networkx"}


def test_a_folder_is_not_written_over(result, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already; name another folder, or add --force"):
        result.write(tmp_path / "out")
    assert listing(tmp_path / "out") == []


def test_a_file_is_never_written_over(result, tmp_path):
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is a file; name a folder"):
            result.write(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_the_folder_around_must_be_there(result, tmp_path):
    with pytest.raises(OutputError, match=r"there is no folder .*missing; make it first"):
        result.write(tmp_path / "missing" / "out")
    assert listing(tmp_path) == []


def test_overwriting_replaces_results_and_leaves_the_rest(result, tmp_path):
    folder = tmp_path / "out"
    result.write(folder, table_format="csv")
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "nodes.csv").write_text("mine")
    result.write(folder, table_format="parquet", overwrite=True)
    assert listing(folder) == sorted(
        [f"{name}.parquet" for name in TABLES]
        + ["manifest.json", "notes.txt", "plots", "summary.json"]
    )
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "plots" / "nodes.csv").read_text() == "mine"


def test_nothing_is_left_of_a_write_that_fails(result, tmp_path, monkeypatch):
    def fail(path, columns, table_format):
        if path.stem == "links":
            raise OSError(28, "No space left on device")
        path.write_text("half")

    monkeypatch.setattr(output, "write_table", fail)
    with pytest.raises(OutputError, match=r"out: cannot be written: No space left on device"):
        result.write(tmp_path / "out")
    assert listing(tmp_path) == []


def test_results_from_before_survive_a_write_that_fails(result, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    result.write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(path, columns, table_format):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "write_table", fail)
    with pytest.raises(OutputError):
        result.write(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert listing(tmp_path) == ["out"]


def test_a_relative_folder_is_one_of_the_current_folder(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result.write("out")
    assert Path("out/summary.json").is_file()
    assert listing(tmp_path) == ["out"]


def test_results_can_be_read_by_others_as_any_file_can(result, tmp_path):
    """As readable as what the user's own umask lets others read, no less."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("")
    result.write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    plain = (tmp_path / "plain" / "file").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {plain}


def test_files_of_others_are_never_replaced(result, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "nodes.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"nodes\.csv that no run of helixsim put there"):
        result.write(folder, overwrite=True)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("nodes.csv", "mine")]


def test_a_folder_in_the_way_of_a_file_is_seen_before_anything_moves(result, tmp_path):
    folder = tmp_path / "out"
    result.write(folder, table_format="csv")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "nodes.parquet").mkdir()
    with pytest.raises(OutputError, match=r"nodes\.parquet: is no regular file"):
        result.write(folder, overwrite=True)
    (folder / "nodes.parquet").rmdir()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_impossible_name_is_an_error_of_ours(result, tmp_path):
    with pytest.raises(OutputError, match="too long"):
        result.write(tmp_path / ("a" * 300))


def test_a_folder_reserved_for_nothing_is_gone_again(tmp_path):
    with OutputFolder(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert list(tmp_path.iterdir()) == []
