"""A link that leaves a machine: what went over it and, where emulated, how long that takes."""

from __future__ import annotations

from collections.abc import Sequence


class OutgoingLink:
    """One request after another, as the simulator's links.

    Parameters
    ----------
    bandwidth_bytes_per_s, latency_s, bytes_per_token
        Of the link in the scenario.
    is_emulated
        Whether what goes over it is to take as long as there.

    Attributes
    ----------
    num_bytes, num_requests
        What it has carried so far; bytes as the scenario counts them.
    """

    def __init__(
        self,
        bandwidth_bytes_per_s: float,
        latency_s: float,
        bytes_per_token: float,
        *,
        is_emulated: bool,
    ) -> None:
        self._bandwidth = bandwidth_bytes_per_s
        self._latency_s = latency_s
        self._bytes_per_token = bytes_per_token
        self._is_emulated = is_emulated
        self._free_s = 0.0
        self.num_bytes = 0.0
        self.num_requests = 0

    def carry(self, now: float, num_tokens: Sequence[int]) -> list[float]:
        """When requests of so many tokens, sent now in that order, arrive; empty if that shows."""
        self.num_bytes += sum(num_tokens) * self._bytes_per_token
        self.num_requests += len(num_tokens)
        if not self._is_emulated:
            return []
        arrivals = []
        for tokens in num_tokens:
            self._free_s = max(self._free_s, now)
            if self._bandwidth > 0:
                self._free_s += tokens * self._bytes_per_token / self._bandwidth
            arrivals.append(self._free_s + self._latency_s)
        return arrivals
