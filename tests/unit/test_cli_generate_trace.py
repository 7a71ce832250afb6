"""helixsim generate-trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.traces import read_trace


@pytest.mark.parametrize("arrivals", ["azure-conversation", "azure-code", "poisson", "gamma"])
def test_what_is_made_up_reads_back_and_repeats(tmp_path: Path, arrivals: str) -> None:
    texts = []
    for name in ("one.csv", "two.csv"):
        options = ["--arrivals", arrivals, "--rate", "2", "--duration", "3 min", "--seed", "7"]
        done = CliRunner().invoke(app, ["generate-trace", "-o", str(tmp_path / name), *options])
        assert done.exit_code == 0, done.output
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    trace = read_trace(tmp_path / "one.csv")
    assert 0 <= trace.requests[0].arrival_s <= trace.requests[-1].arrival_s < 180
    assert f"{len(trace)} requests" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arrivals", "lunar"], "poisson"),
        (["--lengths", "no-such-file"], "no-such-file"),
        (["--rate", "0"], "rate"),
        (["--duration", "5"], "unit"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(
    tmp_path: Path, options: list[str], said: str
) -> None:
    output = tmp_path / "trace.csv"
    done = CliRunner().invoke(app, ["generate-trace", "-o", str(output), *options])
    assert done.exit_code == 2
    assert said in done.stderr
    assert not output.exists()


def test_lengths_from_a_file_say_what_they_stand_on(tmp_path):
    talk = [{"from": "human", "value": "hello there"}, {"from": "gpt", "value": "hi"}]
    (tmp_path / "talks.json").write_text(json.dumps([{"conversations": talk}]))
    options = ("--lengths", tmp_path / "talks.json", "-o", tmp_path / "one.csv")
    result = CliRunner().invoke(app, ["generate-trace", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "note: talks.json: lengths are characters / 4, for want of a tokeni" in result.stderr
    assert set(read_trace(tmp_path / "one.csv").lengths.pairs) == {(3, 1)}
