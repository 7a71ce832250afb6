"""Records requests of a live cluster, and says how each has ended."""

from __future__ import annotations

from collections.abc import Callable

from helixreal.serving.frontend import Failed, Finished, Refused
from helixsim.control.routing.policy import Rejection
from helixsim.metrics.recorder import RunRecorder
from helixsim.requests import Request

_REJECTION_TEXTS = {
    Rejection.FLOW: "no route is left",
    Rejection.LENGTH: "the prompt and its answer are longer than the nodes of any route allow",
    Rejection.KV: "the KV caches are full",
    Rejection.LATE: "the first token would come later than its SLO allows",
    Rejection.NODES: "no route covers all layers without the nodes that are down",
}
_NO_ROUTE = (Rejection.FLOW, Rejection.NODES)


class LiveRecorder(RunRecorder):
    """Records requests, and calls `on_end` for each request that has ended.

    Attributes
    ----------
    on_end
        Called with the request and how it has ended.
    retry_after_s
        Seconds after which a client that was refused may try again.
    can_wait
        Whether a request that finds no room in the KV caches now may find some later.
    """

    def __init__(
        self,
        window_start_s: float,
        window_end_s: float,
        node_names: tuple[str, ...],
        *,
        keep_iterations: bool,
        has_classes: bool = False,
    ) -> None:
        super().__init__(
            window_start_s,
            window_end_s,
            node_names,
            keep_iterations=keep_iterations,
            has_classes=has_classes,
        )
        self.on_end: Callable[[Request, Finished | Failed | Refused | None], None] = _no_listener
        self.retry_after_s: Callable[[], float] = lambda: 1.0
        self.can_wait: Callable[[], bool] = lambda: True

    def rejected(self, request: Request, reason: Rejection) -> None:
        """A request has been rejected."""
        super().rejected(request, reason)
        self.on_end(request, self._refusal(reason))

    def _refusal(self, reason: Rejection) -> Refused:
        if reason is Rejection.KV and not self.can_wait():
            return Refused("the request is larger than the KV caches of any route", None)
        retry_after_s = None if reason is Rejection.LENGTH else self.retry_after_s()
        return Refused(_REJECTION_TEXTS[reason], retry_after_s, reason in _NO_ROUTE)

    def ended(self, request: Request, now: float) -> None:
        """The last pass of a request has returned."""
        super().ended(request, now)
        self.on_end(request, Finished("length"))

    def failed(self, request: Request, reason: str, now: float) -> None:
        """A request had been admitted, but cannot be completed."""
        super().failed(request, reason, now)
        self.on_end(request, Failed(reason))

    def cancelled(self, request: Request, now: float) -> None:
        """The client has cancelled a request."""
        super().cancelled(request, now)
        self.on_end(request, None)


def _no_listener(request: Request, how: object) -> None:
    """Default of `LiveRecorder.on_end`."""
