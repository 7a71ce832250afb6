"""The recorder of a server, which runs without end."""

from __future__ import annotations

from collections.abc import Sequence

from helixreal.coordinator.live_recorder import LiveRecorder
from helixreal.serving.frontend import Finished
from helixsim.requests import Request


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
