"""The time of a run, on every host alike: seconds since it began, perhaps faster than the clock."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from pathlib import Path


class Clock:
    """Time of the run.

    Parameters
    ----------
    scale
        Seconds of the run per second by the clock.
    origin_s
        What the clock showed when the run was at 0.
    """

    def __init__(self, scale: float = 1.0, origin_s: float | None = None) -> None:
        self.scale = scale
        self._origin_s = time.monotonic() if origin_s is None else origin_s

    @classmethod
    def like(cls, scale: float, now_s: float, clock_s: float, host: str) -> Clock:
        """The clock of another process, which told us its time.

        On the same host all processes read the same clock. From another host, the time on the
        way cannot be told from a difference; we are behind by as much.
        """
        read_s = clock_s if host == this_host() else time.monotonic()
        return cls(scale, read_s - now_s / scale)

    def now(self) -> float:
        """The time of the run."""
        return (time.monotonic() - self._origin_s) * self.scale


def this_host() -> str:
    """The same for all processes that read the same monotonic clock, different for others."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()}/{boot}"
