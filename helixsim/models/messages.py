"""Links that carry messages: one for each request and hop, or one for all that leave at once.

A machine hands its messages to the network one after another, whichever link they take. A link
and the receiver's network interface carry one after another too; bytes flow on while the rest is
still being sent, so that the slowest of the three sets the pace. What arrives is noticed after
an exponential delay. All of it has a closed form, as the links of the paper physics do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log
from operator import itemgetter
from typing import TYPE_CHECKING, cast

from helixsim.control.cluster_view import ClusterView
from helixsim.control.routing.policy import HopPolicy, LinkPolicy, Policy, RoutingPoint
from helixsim.models.egress import take_link
from helixsim.models.links import DeliveryQueue, Transfer
from helixsim.physics.performance_model import SendingCosts
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request
from helixsim.steps import Batch

if TYPE_CHECKING:
    from random import Random

_JITTER_STEPS = 1024
_JITTER = tuple(round(-log(1 - (i + 0.5) / _JITTER_STEPS), 9) for i in range(_JITTER_STEPS))
"""Quantiles of the exponential distribution of mean 1, rounded: the same on every machine."""

_NO_TAKEN: frozenset[int] = frozenset()


class ReceivingNic:
    """The inbound side of a machine's network interface; `free_s` is when it has all."""

    __slots__ = ("free_s", "s_per_byte")

    def __init__(self, bytes_per_s: float) -> None:
        self.s_per_byte = 1 / bytes_per_s
        self.free_s = 0.0


class MessageLink:
    """A link that carries one message after another; it has the gauges of any link.

    Attributes
    ----------
    num_bytes, num_requests
        What it has been given since the start of the run.
    free_s
        When it has sent all of that.
    """

    __slots__ = (
        "_busy_s",
        "_bytes_per_token",
        "_carries_steps",
        "_inbox",
        "_next_number",
        "_receiver",
        "_s_per_byte",
        "free_s",
        "index",
        "latency_s",
        "num_bytes",
        "num_requests",
        "placed",
    )

    def __init__(
        self,
        placed: PlacedLink,
        inbox: DeliveryQueue,
        receiver: ReceivingNic,
        next_number: Callable[[], int],
        *,
        to_coordinator: bool,
    ) -> None:
        self.placed = placed
        self.index = placed.index
        self.latency_s = placed.latency_s
        self._inbox = inbox
        self._receiver = receiver
        self._bytes_per_token = placed.bytes_per_token
        self._carries_steps = not to_coordinator
        self._s_per_byte = 1 / placed.bandwidth_bytes_per_s
        self._next_number = next_number
        self._busy_s = 0.0
        self.free_s = 0.0
        self.num_bytes = 0.0
        self.num_requests = 0

    def carry(self, num_bytes: float, started_s: float, handed_s: float) -> float:
        """Take a message; when it has arrived, latency apart.

        `started_s` and `handed_s` are when the sender began and ended to hand it over.
        """
        receiver = self._receiver
        begins = max(started_s, self.free_s)
        self.free_s = max(handed_s, begins + num_bytes * self._s_per_byte)
        self._busy_s += self.free_s - begins
        self.num_bytes += num_bytes
        receiver.free_s = max(
            self.free_s, max(begins, receiver.free_s) + num_bytes * receiver.s_per_byte
        )
        return receiver.free_s

    def num_message_bytes(self, request: Request) -> float:
        """What a request weighs here: all tokens of its step between nodes, one to the host.

        A front end needs only the token that comes next.
        """
        return self._bytes_per_token * (request.num_new_tokens if self._carries_steps else 1)

    def num_batch_bytes(self, batch: Batch) -> float:
        """What requests weigh here together."""
        num_tokens = batch.num_tokens if self._carries_steps else len(batch.requests)
        return self._bytes_per_token * num_tokens

    def carry_tokens(self, num_tokens: int, now: float) -> float:
        """Carry tokens that are ready now as one message; when it has arrived, latency apart."""
        self.num_requests += num_tokens
        return self.carry(num_tokens * self._bytes_per_token, now, now)

    def depart(self, requests: list[Request], sent_s: list[float]) -> None:
        """Put messages in flight that arrive, latency apart, at these rising times."""
        self.depart_batch(Batch.of(requests), sent_s)

    def depart_batch(self, batch: Batch, sent_s: list[float]) -> None:
        """The same for a group whose prompts have been counted."""
        self.num_requests += len(batch.requests)
        transfer = Transfer(
            batch.requests,
            batch.num_prompts,
            batch.prompt_tokens,
            self.placed.entry_layer,
            self.latency_s,
            sent_s,
            sent_s[0],
            None,
            self._next_number(),
        )
        inbox = self._inbox
        inbox.transfers.append(transfer)
        if transfer.first_arrival_s < inbox.announce_before_s:
            inbox.announce(transfer)

    def use_bandwidth(self, bandwidth_bytes_per_s: float) -> None:
        """Nothing changes: messages use what is there, whatever the plan of flow."""

    def backlog_s(self, now: float) -> float:
        """How long it has yet to send at what it has been given."""
        return max(self.free_s - now, 0.0)

    def busy_s(self, now: float) -> float:
        """How long it has been sending since the start of the run."""
        return self._busy_s - max(self.free_s - now, 0.0)


class MessageEgress:
    """Sends what a machine is done with, message by message.

    Prompts whose route is not fixed yet have their next node chosen here, when they leave, by
    any policy, over all links: the network queues messages, so that none needs to wait for one.

    Parameters
    ----------
    machine
        Its number.
    links
        Its links.
    policy
        Chooses, unless it has done so at admission.
    end_layer
        Number of a node -> where its layers end.
    sending
        What sending costs.
    nic_bytes_per_s
        Its network interface, outbound.
    jitter
        Random stream of delivery delays.
    view
        Where transit times are kept, if the machine is a node and the policy needs them.
    """

    def __init__(
        self,
        machine: int,
        links: Sequence[MessageLink],
        policy: Policy,
        end_layer: Callable[[int], int],
        sending: SendingCosts,
        nic_bytes_per_s: float,
        jitter: Random,
        view: ClusterView | None,
    ) -> None:
        self._machine = machine
        self._links: Mapping[int, MessageLink] = {link.index: link for link in links}
        self._placed = [link.placed for link in links]
        self._policy = policy
        self._view = view
        self._chooses = policy.routing_point is not RoutingPoint.ADMISSION
        self._end_layer = end_layer
        self._s_per_byte = 1 / min(sending.bytes_per_s, nic_bytes_per_s)
        self._message_s = sending.message_s
        self._jitter_s = tuple(sending.delivery_jitter_s * quantile for quantile in _JITTER)
        self._random_bits = jitter.getrandbits
        self._is_batched = sending.is_batched
        self._free_s = 0.0
        self._last_chunk_s: dict[Request, float] = {}

    def depart(self, batch: Batch, now: float) -> None:
        """Send a group that is ready now, in order."""
        if self._view is not None:
            self._view.passed(batch.requests, now)
        if self._chooses and batch.num_prompts:
            for request in batch.requests:
                if request.is_prefill and self._machine not in request.onward:
                    self._choose(request)
        if self._is_batched and len(self._links) == 1:
            self._send_as_one(batch.requests[0].onward[self._machine], batch, now)
        else:
            self._send(batch.requests, now, None)

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests as they become ready, in that order."""
        if self._chooses:
            for request, ready in zip(requests, ready_s, strict=True):
                self.depart(Batch.of([request]), ready)
        else:
            self._send(requests, 0.0, ready_s)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """No request waits here; forget when chunks of unwanted ones were sent."""
        for request in [request for request in self._last_chunk_s if not is_wanted(request)]:
            del self._last_chunk_s[request]

    def _choose(self, request: Request) -> None:
        policy, machine, request = self._policy, self._machine, request.origin
        if policy.routing_point is RoutingPoint.HOP:
            placed: PlacedLink | None = cast(HopPolicy, policy).choose(machine, request)
        else:
            choose = cast(LinkPolicy, policy).candidates(machine, self._placed)
            placed = choose(request, _NO_TAKEN)
        assert placed is not None, "every link is free to take"
        take_link(request, placed, self._links, self._end_layer)  # type: ignore[arg-type]

    def _send(
        self, requests: Iterable[Request], now: float, ready_s: Sequence[float] | None
    ) -> None:
        if self._is_batched:
            for ready, shared, group in self._groups(requests, now, ready_s):
                self._send_as_one(shared, Batch.of(group), ready)
            return
        machine, bits, jitter_s = self._machine, self._random_bits, self._jitter_s
        s_per_byte, message_s = self._s_per_byte, self._message_s
        free = self._free_s
        groups: dict[MessageLink, list[tuple[float, int, Request]]] = {}
        for place, request in enumerate(requests):
            if ready_s is not None:
                now = ready_s[place]
            link: MessageLink = request.onward[machine]
            num_bytes = link.num_message_bytes(request)
            started = now if now > free else free
            free = started + (message_s + num_bytes * s_per_byte)
            sent = link.carry(num_bytes, started, free) + jitter_s[bits(10)]
            if request.is_prefill:
                sent = self._in_order((request,), sent)
            if self._chooses:
                request.via_link, request.sent_s = link.index, started
            if link in groups:
                groups[link].append((sent, place, request))
            else:
                groups[link] = [(sent, place, request)]
        self._free_s = free
        for link, messages in groups.items():
            messages.sort(key=itemgetter(0, 1))
            link.depart([message[2] for message in messages], [message[0] for message in messages])

    def _in_order(self, requests: Sequence[Request], sent_s: float) -> float:
        """When prefills are noticed at the earliest: no chunk before the one ahead of it."""
        last_s = self._last_chunk_s
        for request in requests:
            sent_s = max(sent_s, last_s.pop(request.origin, sent_s))
        for request in requests:
            if request.origin is not request:
                last_s[request.origin] = sent_s
        return sent_s

    def _groups(
        self, requests: Iterable[Request], now: float, ready_s: Sequence[float] | None
    ) -> Iterable[tuple[float, MessageLink, list[Request]]]:
        """Requests for the same machine that are ready at the same time, with that time."""
        groups: dict[tuple[float, MessageLink], list[Request]] = {}
        for place, request in enumerate(requests):
            ready = now if ready_s is None else ready_s[place]
            groups.setdefault((ready, request.onward[self._machine]), []).append(request)
        return [(ready, link, group) for (ready, link), group in groups.items()]

    def _send_as_one(self, link: MessageLink, batch: Batch, ready_s: float) -> None:
        """Send requests that leave at once as one message."""
        num_bytes = link.num_batch_bytes(batch)
        started = ready_s if ready_s > self._free_s else self._free_s
        self._free_s = handed = started + (self._message_s + num_bytes * self._s_per_byte)
        jitter_s = self._jitter_s[self._random_bits(10)]
        sent = link.carry(num_bytes, started, handed) + jitter_s
        if batch.num_prompts:
            sent = self._in_order([r for r in batch.requests if r.is_prefill], sent)
        if self._chooses:
            for request in batch.requests:
                request.via_link, request.sent_s = link.index, started
        link.depart_batch(batch, [sent] * len(batch.requests))
