"""Record the requests of a real cluster, and tell their ends to whoever waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from helixreal.serving.frontend import Failed, Finished, Refused
from helixsim.control.routing.policy import Rejection
from helixsim.metrics.recorder import RunRecorder
from helixsim.requests import Request

_REJECTION_TEXTS = {
    Rejection.FLOW: "no route is left for this request",
    Rejection.LENGTH: "the prompt and its answer are longer than the nodes of any route allow",
    Rejection.KV: "the KV caches are full",
    Rejection.LATE: "the first token would come later than its SLO allows",
    Rejection.NODES: "no route covers all layers without the nodes that are down",
}
_TEMPORARY = (Rejection.KV, Rejection.LATE, Rejection.NODES)


class LiveRecorder(RunRecorder):
    """Records requests, and calls `on_end` for each request that has ended."""

    def __init__(
        self,
        window_start_s: float,
        window_end_s: float,
        node_names: tuple[str, ...],
        *,
        keep_iterations: bool,
    ) -> None:
        super().__init__(window_start_s, window_end_s, node_names, keep_iterations=keep_iterations)
        self.on_end: Callable[[Request, Finished | Failed | Refused | None], None] = _no_listener
        self.retry_after_s: Callable[[], float] = lambda: 1.0

    def rejected(self, request: Request, reason: Rejection) -> None:
        """A request has been rejected."""
        super().rejected(request, reason)
        retry_after_s = self.retry_after_s() if reason in _TEMPORARY else None
        self.on_end(request, Refused(_REJECTION_TEXTS[reason], retry_after_s))

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


class CountingRecorder(LiveRecorder):
    """Counts requests and tokens, and keeps nothing of each: for servers, which run without end."""

    def prompt_ended(self, request: Request, now: float) -> None:
        """The prefill of a request has returned."""
        self.num_prompt_tokens += request.prompt_tokens
        self.num_cached_tokens += request.num_cached_tokens

    def decodes_ended(self, requests: Sequence[Request], times: Sequence[float]) -> None:
        """Decodes have returned at these times."""
        self.num_decode_tokens += len(requests)

    def ended(self, request: Request, now: float) -> None:
        """The last pass of a request has returned."""
        self.num_completed += 1
        self.on_end(request, Finished("length"))

    def _add_row(self, request: Request, status: str, end_s: float) -> None:
        """Keep no row."""


def _no_listener(request: Request, how: object) -> None:
    """Default of `LiveRecorder.on_end`."""
