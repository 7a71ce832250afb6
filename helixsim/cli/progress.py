"""Progress of a command: a bar on a terminal, occasional lines in a pipe or a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Protocol

LINE_EVERY_S = 30.0
"""Interval of progress lines without a terminal; short commands print none."""

_POLL_EVERY_S = 0.2


class ShowProgress(Protocol):
    """Shows the progress of one task."""

    def __call__(
        self, done: float, total: float | None = None, *, step: str = "", figures: str = ""
    ) -> None:
        """Show a state.

        Parameters
        ----------
        done, total
            Amounts, in the unit of the task; without a total the end is not known.
        step
            The current step, in place of the title.
        figures
            Intermediate results.
        """
        ...


@contextmanager
def show_progress(title: str, unit: str = "", total: float | None = None) -> Iterator[ShowProgress]:
    """Show the progress of a task on stderr until the context ends.

    Parameters
    ----------
    title
        Name of the task.
    unit
        Unit of the amounts, such as ``runs`` or ``s``; without it no amounts are shown.
    total
        The total amount, where it is the same throughout.
    """
    if sys.stderr.isatty():
        with _bar(title, unit, total) as show:
            yield show
    else:
        yield _Lines(title, unit, total)


@contextmanager
def polled(look: Callable[[], None]) -> Iterator[None]:
    """Call a function at intervals, from another thread, until the context ends.

    A simulation is observed this way because a watcher within it brings the coordinator up to
    date more often, and the calibrated physics then draws its delays in another order.
    """
    ended = Event()

    def poll() -> None:
        while not ended.wait(_POLL_EVERY_S):
            look()

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _amount(done: float, total: float | None, unit: str) -> str:
    if not unit:
        return ""
    return f"{done:,.0f} {unit}" if total is None else f"{done:,.0f} of {total:,.0f} {unit}"


class _Lines:
    def __init__(self, title: str, unit: str, total: float | None) -> None:
        self._title, self._unit, self._total = title, unit, total
        self._next_s = monotonic() + LINE_EVERY_S

    def __call__(
        self, done: float, total: float | None = None, *, step: str = "", figures: str = ""
    ) -> None:
        now = monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LINE_EVERY_S
        amount = _amount(done, self._total if total is None else total, self._unit)
        text = ", ".join(part for part in (amount, figures) if part)
        print(f"{step or self._title}: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _bar(title: str, unit: str, total: float | None) -> Iterator[ShowProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(title, total=total, amount="", figures="")
        constant_total = total

        def show(
            done: float, total: float | None = None, *, step: str = "", figures: str = ""
        ) -> None:
            whole = constant_total if total is None else total
            done = done if whole is None else min(done, whole)
            bar.update(
                task,
                description=step or title,
                completed=done,
                total=whole,
                amount=_amount(done, whole, unit),
                figures=figures,
            )

        yield show
