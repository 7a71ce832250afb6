"""Fits of engines to request logs, and what Ctrl-C leaves of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_request_log import toy, write_log
from typer.testing import CliRunner

from helixsim.calibration.log_fit import fit_logs
from helixsim.cli import app
from helixsim.models.simulation import Simulation
from helixsim.recorded.log_replay import replay_log
from helixsim.recorded.sources import load_recording

HEADER = "input_tokens,output_tokens,queued_s,first_token_s,last_token_s"


@pytest.fixture
def log(tmp_path):
    """Steps of the toy take 10 ms; here they take 20 ms."""
    rows = [f"10,5,{at},{at + 0.021},{at + 0.101}" for at in (0, 1, 2, 3)]
    return load_recording(write_log(tmp_path / "log", rows, HEADER))


@pytest.fixture
def interrupt_run(monkeypatch):
    """Let Ctrl-C end the n-th simulation."""

    def interrupt(number):
        run, runs = Simulation.run, []

        def run_and_count(self):
            result = run(self)
            runs.append(result)
            result.summary["partial"] = len(runs) == number
            return result

        monkeypatch.setattr(Simulation, "run", run_and_count)

    return interrupt


def test_the_time_of_the_host_is_found(log):
    found = fit_logs([(log, replace(toy(), physics="calibrated"))])
    assert found.fitted["step_host_s"] == pytest.approx(0.02, rel=0.05)
    assert not found.interrupted
    assert found.loss < 0.02 < found.start_loss


@pytest.mark.parametrize("number", [2, 6])
def test_after_an_interruption_the_best_engine_so_far_is_kept(log, interrupt_run, number):
    interrupt_run(number)
    found = fit_logs([(log, replace(toy(), physics="calibrated"))])
    assert found.interrupted
    assert found.evaluations == number - 1
    assert found.loss <= found.start_loss
    assert bool(found.fitted) == (number == 6)


def test_before_the_first_engine_there_is_none(log, interrupt_run):
    interrupt_run(1)
    with pytest.raises(KeyboardInterrupt):
        fit_logs([(log, replace(toy(), physics="calibrated"))])


@pytest.mark.parametrize("option", ["--hold-out", "--time-limit"])
def test_options_of_recordings_pass_by_pass_are_refused(log, tmp_path, option):
    arguments = ["calibrate", str(log.source), "quickstart", "-o", str(tmp_path / "engine.yaml")]
    result = CliRunner().invoke(app, [*arguments, option, "1 s"])
    assert result.exit_code == 2
    assert f"{option}: is for recordings pass by pass" in result.output


def test_a_replay_leaves_out_the_seed_that_was_interrupted(log, interrupt_run):
    interrupt_run(3)
    result = replay_log(log, replace(toy(), physics="calibrated"), seeds=(0, 1, 2, 3))
    assert result.interrupted
    assert result.seeds == (0, 1)
    assert len(result.results) == 2
    interrupt_run(1)
    assert replay_log(log, toy()).interrupted
