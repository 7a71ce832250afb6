"""Processes that work for another one: they leave Ctrl-C to it, and end when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import sleep

_PARENT_LOOK_S = 2.0


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, for processes that are started too: until they ask for it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with(parent: int) -> None:
    """End this process when the one that started it has ended, even if that was killed.

    Parameters
    ----------
    parent
        Number of the process that started this one.
    """
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        sleep(_PARENT_LOOK_S)
    os._exit(1)
