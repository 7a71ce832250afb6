"""Worker processes leave Ctrl-C to their parent process, also while they start."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal
from joblib import Parallel, delayed
from helixsim.processes import held_interrupts

with held_interrupts():
    found = Parallel(2, backend="loky", return_as="generator_unordered")(
        delayed(signal.pthread_sigmask)(signal.SIG_BLOCK, ()) for _ in range(4)
    )
print([signal.SIGINT in blocked for blocked in found])
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are not blocked here")
def test_interrupts_are_blocked_in_processes_that_are_started_while_they_are_held():
    """In a process of its own, since the pool's helper processes must not run yet."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[True, True, True, True]\nFalse\n", "")
