"""The time of a run, the same on every host: seconds since its start, scaled by a factor."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from pathlib import Path


class Clock:
    """A clock of the time of the run.

    Parameters
    ----------
    scale
        Seconds of the run per second by the clock.
    origin_s
        Reading of the monotonic clock at time 0 of the run; None for now.
    """

    def __init__(self, scale: float = 1.0, origin_s: float | None = None) -> None:
        self.scale = scale
        self._origin_s = time.monotonic() if origin_s is None else origin_s

    @classmethod
    def like(cls, scale: float, now_s: float, clock_s: float, host: str) -> Clock:
        """A clock that follows that of another process, given its time.

        Processes of one host read the same monotonic clock. From another host, the transit time of
        the message is unknown, and this clock is late by it.
        """
        read_s = clock_s if host == this_host() else time.monotonic()
        return cls(scale, read_s - now_s / scale)

    def now(self) -> float:
        """The time of the run."""
        return (time.monotonic() - self._origin_s) * self.scale


def this_host() -> str:
    """Identifies the host and its boot: processes with the same value share a monotonic clock."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()}/{boot}"
