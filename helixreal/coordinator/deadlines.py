"""Finds attempts whose pass was lost in flight, and requests that have taken too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helixreal.coordinator.attempts import Attempt
from helixreal.coordinator.worker_handle import WorkerHandle
from helixsim.control.pass_deadlines import DeadlineSettings, PassDeadlines, expected_pass_s
from helixsim.requests import Request

_CHECK_S = 1.0
_LONG_BATCH_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Time limits of passes and requests, in seconds by the clock.

    Attributes
    ----------
    pass_floor_s
        No pass counts as lost sooner.
    most_stalls
        A request fails when passes of it were lost more often.
    request_s
        A request fails when its answer takes longer; None for no limit.
    """

    pass_floor_s: float = 30.0
    most_stalls: int = 3
    request_s: float | None = None


class Deadlines:
    """Looks once a second for passes that should have returned.

    Parameters
    ----------
    limits
        The time limits.
    workers
        The handles of all nodes.
    time_scale
        Seconds of the run per second by the clock.
    """

    def __init__(
        self, limits: TimeLimits, workers: Sequence[WorkerHandle], time_scale: float
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._nodes = tuple(worker.placed for worker in workers)
        self._scale = time_scale
        floor_s = limits.pass_floor_s * time_scale
        self._passes = PassDeadlines(DeadlineSettings(floor_s=floor_s))
        self._next_check_s = 0.0

    def returned(self, attempt: Attempt, now: float) -> None:
        """Take note that a pass of an attempt has returned."""
        seconds = now - attempt.progress_s
        attempt.progress_s = now
        if seconds > self._passes.notable_s:
            self._passes.took(seconds, is_first=not attempt.request.num_output_tokens)

    def is_due(self, now: float) -> bool:
        """Whether it is time for the next look."""
        if now < self._next_check_s:
            return False
        self._next_check_s = now + _CHECK_S * self._scale
        self._passes.forget(now)
        return True

    def overdue(self, attempts: Iterable[Attempt], now: float) -> list[Attempt]:
        """The attempts whose pass counts as lost."""
        return [each for each in attempts if now - each.progress_s > self._allowed_s(each)]

    def _allowed_s(self, attempt: Attempt) -> float:
        request = attempt.request
        assert request.route is not None
        on_way = [self._workers[stage.node] for stage in attempt.route]
        tokens = request.num_new_tokens if request.num_output_tokens else request.num_tokens
        return self._passes.allowed_s(
            expected_pass_s(request.route, self._nodes, tokens),
            is_first=not request.num_output_tokens,
            is_busy=any(each.num_waiting or each.stuck_s > _LONG_BATCH_S for each in on_way),
            num_stalls=attempt.generation.num_stalls,
        )

    def give_up(self, attempt: Attempt) -> bool:
        """Whether an attempt was the last: passes of its request were lost too often."""
        attempt.generation.num_stalls += 1
        return attempt.generation.num_stalls > self._limits.most_stalls

    def too_late(self, requests: Iterable[Request], now: float) -> list[Request]:
        """The requests that have taken longer than a request may."""
        limit_s = self._limits.request_s
        if limit_s is None:
            return []
        return [each for each in requests if now - each.arrival_s > limit_s * self._scale]

    @property
    def request_s(self) -> float | None:
        """Time limit of a request, by the clock."""
        return self._limits.request_s
