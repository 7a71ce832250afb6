"""Worker processes: they leave Ctrl-C to their parent process, and end when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread
from time import sleep

_PARENT_LOOK_S = 2.0


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Block Ctrl-C in this process and in child processes until they unblock it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Before Python 3.13, starting this helper process of multiprocessing unblocks Ctrl-C.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with(parent: int) -> None:
    """End this process when its parent process has ended, even if the parent was killed.

    Parameters
    ----------
    parent
        Id of the parent process.
    """
    Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        sleep(_PARENT_LOOK_S)
    os._exit(1)
