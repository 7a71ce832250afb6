"""Progress of commands: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from time import sleep

import pytest

from helixsim.cli import progress
from helixsim.cli.progress import show_progress


@pytest.fixture
def clock(monkeypatch):
    """Time that a test moves on."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_lines_in_a_pipe_come_now_and_then(clock, capsys):
    with show_progress("mine", "runs") as show:
        for second in range(95):
            clock[0] = float(second)
            show(second, 100, figures="loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"mine: {second} of 100 runs, loss 0.5" for second in (30, 60, 90)
    ]


def test_steps_and_totals(clock, capsys):
    for total, unit in ((None, "s"), (5000, "s"), (None, "")):
        with show_progress("mine", unit, total) as show:
            clock[0] += 40
            show(1234.0, step="loading", figures="x")
    assert capsys.readouterr().err.splitlines() == [
        "loading: 1,234 s, x",
        "loading: 1,234 of 5,000 s, x",
        "loading: x",
    ]


def test_a_bar_on_a_terminal():
    code = (
        "from helixsim.cli.progress import show_progress\n"
        "with show_progress('mine', 'runs', 4) as show:\n"
        "    show(1); show(3, figures='[loss] 0.5'); show(9, 8, step='last')\n"
    )
    primary, secondary = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=secondary, stdout=subprocess.PIPE, check=True
    )
    os.close(secondary)
    shown = os.read(primary, 100_000).decode()
    os.close(primary)
    assert done.stdout == b""
    assert "last" in shown
    assert "8 of 8 runs" in shown


def test_polling_ends_with_the_context(monkeypatch):
    monkeypatch.setattr(progress, "_POLL_EVERY_S", 0.001)
    looks: list[int] = []
    with progress.polled(lambda: looks.append(1)):
        while len(looks) < 3:
            sleep(0.001)
    seen = len(looks)
    sleep(0.02)
    assert len(looks) == seen
