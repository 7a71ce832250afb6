"""What the coordinator tells of the requests, for the results of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from helixsim.control.routing.policy import Rejection
from helixsim.requests import Request


class Recorder(Protocol):
    """Keeps what happens, for the results of the run."""

    def arrived(self, request: Request) -> None:
        """A request has reached the coordinator."""
        ...

    def rejected(self, request: Request, reason: Rejection) -> None:
        """A request has been rejected."""
        ...

    def prompt_ended(self, request: Request, now: float) -> None:
        """The prefill of a request has returned."""
        ...

    def decodes_ended(self, requests: Sequence[Request], times: Sequence[float]) -> None:
        """Decodes have returned at these times; each request still stands in that pass."""
        ...

    def ended(self, request: Request, now: float) -> None:
        """The last pass of a request has returned."""
        ...

    def failed(self, request: Request, reason: str, now: float) -> None:
        """A request had been admitted, but cannot be served to its end."""
        ...

    def cancelled(self, request: Request, now: float) -> None:
        """The user of a request does not want its answer any more."""
        ...
