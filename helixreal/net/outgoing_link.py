"""Outgoing links of a machine: traffic counters and, where emulated, arrival times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from helixsim.physics.performance_model import SendingCosts


class EmulatedSender:
    """The emulated sending side of a machine, shared by its links: one message after another.

    The same rule as the simulator's :class:`helixsim.models.messages.MessageEgress`.

    Parameters
    ----------
    costs
        Times of the performance model for sending.
    nic_bytes_per_s
        Outbound bandwidth of the machine's network interface.
    seed
        Seed of the delivery delays.
    """

    def __init__(self, costs: SendingCosts, nic_bytes_per_s: float, seed: str) -> None:
        self._message_s = costs.message_s
        self._s_per_byte = 1 / min(costs.bytes_per_s, nic_bytes_per_s)
        self._jitter_s = costs.delivery_jitter_s
        self._random = Random(f"jitter {seed}")
        self._free_s = 0.0

    def occupy(self, now: float, num_bytes: float) -> tuple[float, float]:
        """Occupy the sender with a message that is ready now; start and end of its sending."""
        started = max(now, self._free_s)
        self._free_s = started + self._message_s + num_bytes * self._s_per_byte
        return started, self._free_s

    def draw_delay_s(self) -> float:
        """Draw the delay between the arrival of the next message and its processing."""
        return self._random.expovariate(1 / self._jitter_s) if self._jitter_s else 0.0


class OutgoingLink:
    """A link that carries one request after another, as the simulator's links do.

    Parameters
    ----------
    bandwidth_bytes_per_s, latency_s, bytes_per_token
        Properties of the link in the scenario.
    is_emulated
        Whether transfers take the time that they take in the scenario.
    sender
        The machine's sending side; None if the performance model has no sending costs.
    to_coordinator
        Whether it leads to the coordinator. With sending costs, messages there carry one token.

    Attributes
    ----------
    num_bytes, num_requests
        Traffic so far, with the activation sizes of the scenario.
    """

    def __init__(
        self,
        bandwidth_bytes_per_s: float,
        latency_s: float,
        bytes_per_token: float,
        *,
        is_emulated: bool,
        sender: EmulatedSender | None = None,
        to_coordinator: bool = False,
    ) -> None:
        self._bandwidth = bandwidth_bytes_per_s
        self._latency_s = latency_s
        self._bytes_per_token = bytes_per_token
        self._is_emulated = is_emulated
        self._sender = sender
        self._carries_one_token = sender is not None and to_coordinator
        self._free_s = 0.0
        self._last_chunk_s: dict[int, float] = {}
        self.num_bytes = 0.0
        self.num_requests = 0

    def arrival_times(self, now: float, num_tokens: Sequence[int]) -> list[float]:
        """Count requests with these numbers of tokens, sent now in this order; when each arrives.

        Empty if links are not emulated: messages then take the time that they take.
        """
        sizes = [
            self._bytes_per_token * (1 if self._carries_one_token else tokens)
            for tokens in num_tokens
        ]
        self.num_bytes += sum(sizes)
        self.num_requests += len(sizes)
        return [self._arrival_s(now, size) for size in sizes] if self._is_emulated else []

    def in_order(self, key: int, due_s: float, *, is_followed: bool) -> float:
        """When a prefill or a chunk of one arrives: not before the chunk ahead of it.

        Parameters
        ----------
        key
            Of its attempt.
        due_s
            When it arrives by itself, as :meth:`arrival_times` has it.
        is_followed
            Whether another chunk follows without waiting for this one.
        """
        due_s = max(due_s, self._last_chunk_s.pop(key, due_s))
        if is_followed:
            self._last_chunk_s[key] = due_s
        return due_s

    def forget(self, keys: Iterable[int]) -> None:
        """Forget the chunks of attempts that have ended."""
        for key in keys:
            self._last_chunk_s.pop(key, None)

    def carry_tokens(self, num_tokens: int, now: float) -> float | None:
        """Count tokens that are sent now as one message; when it arrives, where emulated.

        The same rule as the simulator's: tokens do not occupy the machine's sending side.
        """
        num_bytes = num_tokens * self._bytes_per_token
        self.num_bytes += num_bytes
        self.num_requests += num_tokens
        if not self._is_emulated:
            return None
        self._free_s = max(self._free_s, now)
        if self._bandwidth > 0:
            self._free_s += num_bytes / self._bandwidth
        return self._free_s + self._latency_s

    def _arrival_s(self, now: float, num_bytes: float) -> float:
        transmission_s = num_bytes / self._bandwidth if self._bandwidth > 0 else 0.0
        if self._sender is None:
            self._free_s = max(self._free_s, now) + transmission_s
            return self._free_s + self._latency_s
        started, handed = self._sender.occupy(now, num_bytes)
        self._free_s = max(handed, max(started, self._free_s) + transmission_s)
        return self._free_s + self._latency_s + self._sender.draw_delay_s()
