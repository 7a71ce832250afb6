"""Whether the first token of a request can still come in time, and what becomes of it if not.

The forecast is the time that the request has waited, and the time that recent prefills took from
leaving the coordinator to their token.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from types import MappingProxyType
from typing import Literal

from helixsim.requests import Request

LateRequests = Literal["serve", "wait", "refuse"]

_MEMORY = 0.1
"""Weight of a new observation."""
_RELAXED = 0.02
"""By this share the forecast falls with each request that is refused: it is measured by requests
that are served, so that without it a forecast that is too high would stay."""


class Lateness:
    """Forecasts times to first token.

    Parameters
    ----------
    limit_s
        The longest time from arrival to the first token; None if no request is ever late.
    policy
        ``serve`` late requests in their turn, let them ``wait`` until no other one waits, or
        ``refuse`` them.
    limits_of_classes
        Name of a class of users -> the limit of its requests, where it is another.

    Attributes
    ----------
    lets_wait, refuses
        Whether late requests wait until no other one waits; whether they are refused.
    """

    def __init__(
        self,
        limit_s: float | None = None,
        policy: LateRequests = "serve",
        limits_of_classes: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:
        self._limit_s = limit_s
        self._limits_of_classes = limits_of_classes
        self._prompt_s = 0.0
        has_limit = any(limit is not None for limit in (limit_s, *limits_of_classes.values()))
        self.lets_wait = has_limit and policy == "wait"
        self.refuses = has_limit and policy == "refuse"

    def prompt_ended(self, request: Request, now: float) -> None:
        """Take note that the first token of a request has come."""
        seconds = now - request.first_dispatch_s
        if not isnan(seconds):
            weight = _MEMORY if self._prompt_s else 1.0
            self._prompt_s += weight * (seconds - self._prompt_s)

    def refused(self) -> None:
        """Take note that a request is refused because it is late."""
        self._prompt_s *= 1 - _RELAXED

    def is_late(self, request: Request, now: float) -> bool:
        """Whether the first token of a request that is sent now comes too late.

        A request that has its first token, or was sent before, never is.
        """
        limit_s = self._limits_of_classes.get(request.user_class, self._limit_s)
        if limit_s is None or request.attempt:
            return False
        return now - request.arrival_s + self._prompt_s > limit_s
