"""Links and what travels over them.

A link sends one request after another. Its times have a closed form: a request starts when the
link is free, the link is free again when it has been sent, and it arrives one latency later.
So nothing need happen in between: a batch that leaves a node becomes one :class:`Transfer` per
link, with the times of all its requests, and the receiver looks into its :class:`DeliveryQueue`
when it wants to know which requests have arrived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from math import inf

from helixsim.control.node_schedulers.burst_wait import last_of_burst
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request
from helixsim.steps import Batch

MUTE = -inf
"""A delivery queue announces nothing while its machine is busy or down."""

Delivery = tuple[float, float, float, int, int, Request]
"""A request in flight, and what orders arrivals: (arrival, sent, started, transfer, place)."""


class Transfer(Batch):
    """Requests that one machine sent over one link, one behind the other.

    Attributes
    ----------
    entry_layer
        The layer at which they go on.
    latency_s
        Of the link.
    sent_s
        When each had been sent; it arrives one latency later.
    first_started_s, started_s
        When the link began to send the first, and each. `started_s` is empty where each began
        when the one before had been sent.
    number
        Transfers are numbered in the order in which they were sent, as all events are.
    last_arrival_s
        When the last of them arrives.
    """

    __slots__ = (
        "entry_layer",
        "first_started_s",
        "last_arrival_s",
        "latency_s",
        "number",
        "sent_s",
        "started_s",
    )

    def __init__(
        self,
        requests: list[Request],
        num_prompts: int,
        prompt_tokens: int,
        entry_layer: int,
        latency_s: float,
        sent_s: list[float],
        first_started_s: float,
        started_s: list[float] | None,
        number: int,
    ) -> None:
        self.requests = requests
        self.num_prompts = num_prompts
        self.prompt_tokens = prompt_tokens
        self.entry_layer = entry_layer
        self.latency_s = latency_s
        self.sent_s = sent_s
        self.first_started_s = first_started_s
        self.started_s = started_s
        self.number = number
        self.last_arrival_s = sent_s[-1] + latency_s

    @classmethod
    def of_batch(
        cls,
        batch: Batch,
        entry_layer: int,
        latency_s: float,
        sent_s: list[float],
        first_started_s: float,
        number: int,
    ) -> Transfer:
        """A batch in flight, each request sent when the one before had been.

        A batch that is a transfer has arrived and belongs to its sender alone, so it goes on as it
        is: most batches of decodes pass through a whole route as one object.
        """
        if batch.__class__ is not cls:
            return cls(
                batch.requests,
                batch.num_prompts,
                batch.prompt_tokens,
                entry_layer,
                latency_s,
                sent_s,
                first_started_s,
                None,
                number,
            )
        transfer: Transfer = batch
        transfer.entry_layer = entry_layer
        transfer.latency_s = latency_s
        transfer.sent_s = sent_s
        transfer.first_started_s = first_started_s
        transfer.started_s = None
        transfer.number = number
        transfer.last_arrival_s = sent_s[-1] + latency_s
        return transfer

    @property
    def first_arrival_s(self) -> float:
        """When the first of them arrives."""
        return self.sent_s[0] + self.latency_s

    def num_arrived(self, now: float) -> int:
        """How many of them have arrived by now."""
        return bisect_right(self.sent_s, now - self.latency_s)

    def split(self, now: float) -> Transfer:
        """Take out and return the requests that have arrived by now, at least one."""
        latency, sent, started = self.latency_s, self.sent_s, self.started_s
        n = 1
        if sent[1] + latency <= now:
            n = bisect_right(sent, now, key=lambda at: at + latency)
        requests = self.requests[:n]
        head = self.part(requests) if self.num_prompts else Batch(requests, 0, 0)
        arrived = Transfer(
            requests,
            head.num_prompts,
            head.prompt_tokens,
            self.entry_layer,
            latency,
            sent[:n],
            self.first_started_s,
            started and started[:n],
            self.number,
        )
        del self.requests[:n]
        del self.sent_s[:n]
        self.num_prompts -= head.num_prompts
        self.prompt_tokens -= head.prompt_tokens
        if started:
            del started[:n]
            self.first_started_s = started[0]
        else:
            self.first_started_s = arrived.sent_s[-1]
        return arrived

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> bool:
        """Drop requests that are not wanted any more; whether any request is left."""
        kept = [delivery for delivery in self.deliveries() if is_wanted(delivery[5])]
        if 0 < len(kept) < len(self.requests):
            rest = Batch.of([delivery[5] for delivery in kept])
            self.requests, self.num_prompts = rest.requests, rest.num_prompts
            self.prompt_tokens = rest.prompt_tokens
            self.sent_s = [delivery[1] for delivery in kept]
            self.started_s = [delivery[2] for delivery in kept]
            self.first_started_s = self.started_s[0]
            self.last_arrival_s = self.sent_s[-1] + self.latency_s
        return bool(kept)

    def deliveries(self) -> list[Delivery]:
        """Every request with what orders arrivals."""
        started = self.started_s or [self.first_started_s, *self.sent_s]
        latency, number = self.latency_s, self.number
        return [
            (sent + latency, sent, started[place], number, place, request)
            for place, (sent, request) in enumerate(zip(self.sent_s, self.requests, strict=True))
        ]


class DeliveryQueue:
    """Transfers in flight to one machine, or arrived there and not yet taken in.

    Attributes
    ----------
    transfers
        In the order in which they were sent.
    announce_before_s
        A transfer that arrives before this is announced to the machine when it sets out.
    announce
        Called with such a transfer.
    """

    __slots__ = ("announce", "announce_before_s", "transfers")

    def __init__(self) -> None:
        self.transfers: list[Transfer] = []
        self.announce_before_s = inf
        self.announce: Callable[[Transfer], None]

    def next_arrival(self) -> Transfer | None:
        """The transfer whose first request is the next to arrive, if any is in flight."""
        transfers = self.transfers
        if not transfers:
            return None
        return transfers[0] if len(transfers) == 1 else min(transfers, key=_first_arrival)

    def take(self, now: float) -> list[Transfer]:
        """Remove and return what has arrived by now, as transfers in order of first arrival.

        A transfer that has arrived in part is divided.
        """
        transfers = self.transfers
        if len(transfers) == 1:
            transfer = transfers[0]
            if transfer.last_arrival_s <= now:
                self.transfers = []
                return transfers
            if transfer.sent_s[0] + transfer.latency_s <= now:
                return [transfer.split(now)]
            return []
        arrived: list[Transfer] = []
        left: list[Transfer] = []
        for transfer in transfers:
            if transfer.last_arrival_s <= now:
                arrived.append(transfer)
            elif transfer.sent_s[0] + transfer.latency_s > now:
                left.append(transfer)
            else:
                arrived.append(transfer.split(now))
                left.append(transfer)
        self.transfers = left
        if len(arrived) > 1:
            arrived.sort(key=_first_arrival)
        return arrived

    def last_of_burst(self, since_s: float, gap_s: float, until_s: float) -> float:
        """The last of the arrivals that follow `since_s` and one another within a gap.

        None of them comes after `until_s`; `since_s` if none comes at all.
        """
        if not self.transfers:
            return since_s
        arrivals = [
            sent + transfer.latency_s
            for transfer in self.transfers
            if transfer.sent_s[0] + transfer.latency_s <= until_s
            for sent in transfer.sent_s
        ]
        return last_of_burst(arrivals, since_s, gap_s, until_s)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that are not wanted any more."""
        self.transfers = [
            transfer for transfer in self.transfers if transfer.drop_unless(is_wanted)
        ]


def _first_arrival(transfer: Transfer) -> tuple[float, float, float, int]:
    sent = transfer.sent_s[0]
    return sent + transfer.latency_s, sent, transfer.first_started_s, transfer.number


def interleaved(transfers: list[Transfer]) -> bool:
    """Whether transfers, in order of first arrival, overlap in time."""
    return any(
        before.last_arrival_s >= after.sent_s[0] + after.latency_s
        for before, after in pairwise(transfers)
    )


def merge(transfers: list[Transfer]) -> list[Delivery]:
    """The deliveries of several transfers, in order of arrival."""
    deliveries = [delivery for transfer in transfers for delivery in transfer.deliveries()]
    deliveries.sort()
    return deliveries


class SerialLink:
    """A link in closed form: requests queue for it without end and go one by one.

    Attributes
    ----------
    free_s
        When it has sent all that it has been given.
    num_tokens, num_requests
        What it has been given since the start of the run.
    """

    __slots__ = (
        "_bandwidth_bytes_per_s",
        "_before",
        "_bytes_per_token",
        "_carried",
        "_decode_s",
        "_entry_layer",
        "_inbox",
        "_next_number",
        "free_s",
        "index",
        "latency_s",
        "num_requests",
        "num_tokens",
        "placed",
    )

    def __init__(
        self,
        placed: PlacedLink,
        bandwidth_bytes_per_s: float,
        inbox: DeliveryQueue,
        next_number: Callable[[], int],
    ) -> None:
        self.placed = placed
        self.index = placed.index
        self.latency_s = placed.latency_s
        self._inbox = inbox
        self._entry_layer = placed.entry_layer
        self._bytes_per_token = placed.bytes_per_token
        self._before = (0.0, 0.0)  # seconds and bytes at bandwidths before this one
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self._decode_s = self.transit_s(1) if bandwidth_bytes_per_s else inf
        self._next_number = next_number
        self._carried: list[tuple[float, float]] = []
        self.free_s = 0.0
        self.num_tokens = 0
        self.num_requests = 0

    def use_bandwidth(self, bandwidth_bytes_per_s: float) -> None:
        """Send what it is given from now on with another bandwidth."""
        before = self._bandwidth_bytes_per_s
        if bandwidth_bytes_per_s == before:
            return
        if before:
            seconds, nbytes = self._before
            self._before = (seconds + (self.num_bytes - nbytes) / before, self.num_bytes)
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self._decode_s = self.transit_s(1)

    def send(self, batch: Batch, now: float) -> Iterable[float]:
        """Send a group that is ready now, in order; return when each began to be sent.

        Times are summed as ``(free + (latency + transmission)) - latency``, which rounds as
        the published simulator does.
        """
        free = start = self.free_s if self.free_s > now else now
        latency, decode_s = self.latency_s, self._decode_s
        if batch.num_prompts:
            sent: list[float] = []
            for request in batch.requests:
                transit_s = (
                    self.transit_s(request.num_new_tokens) if request.is_prefill else decode_s
                )
                free = free + transit_s - latency
                sent.append(free)
        else:
            sent = [free := free + decode_s - latency for _ in batch.requests]
        transfer = Transfer.of_batch(
            batch, self._entry_layer, latency, sent, start, self._next_number()
        )
        self._depart(transfer)
        return chain((start,), sent)

    def send_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests that become ready at times of their own, in that order."""
        latency, decode_s, free = self.latency_s, self._decode_s, self.free_s
        started: list[float] = []
        sent: list[float] = []
        for request, ready in zip(requests, ready_s, strict=True):
            free = max(free, ready)
            started.append(free)
            transit_s = self.transit_s(request.num_new_tokens) if request.is_prefill else decode_s
            free = free + transit_s - latency
            sent.append(free)
        self._depart(self._transfer(Batch.of(requests), sent, started))

    def carry(self, request: Request, now: float, bandwidth_bytes_per_s: float) -> float:
        """Send one request at once, with the bandwidth given; return when it has been sent."""
        nbytes = request.num_new_tokens * self._bytes_per_token
        sent = now + (self.latency_s + nbytes / bandwidth_bytes_per_s) - self.latency_s
        self._carried.append((sent, bandwidth_bytes_per_s))
        self._depart(self._transfer(Batch.of([request]), [sent], [now]))
        return sent

    def carry_tokens(self, num_tokens: int, now: float) -> float:
        """Send tokens that are ready now as one message; return when it has been sent."""
        free = self.free_s if self.free_s > now else now
        self.free_s = free + num_tokens * self._bytes_per_token / self._bandwidth_bytes_per_s
        self.num_requests += num_tokens
        self.num_tokens += num_tokens
        return self.free_s

    def transit_s(self, num_tokens: int) -> float:
        """How long `num_tokens` tokens take from the start of sending to arrival."""
        return self.latency_s + num_tokens * self._bytes_per_token / self._bandwidth_bytes_per_s

    def _transfer(self, batch: Batch, sent: list[float], started: list[float]) -> Transfer:
        return Transfer(
            batch.requests,
            batch.num_prompts,
            batch.prompt_tokens,
            self._entry_layer,
            self.latency_s,
            sent,
            started[0],
            started,
            self._next_number(),
        )

    def _depart(self, transfer: Transfer) -> None:
        self.free_s = transfer.sent_s[-1]
        num_requests = len(transfer.requests)
        self.num_requests += num_requests
        self.num_tokens += transfer.prompt_tokens + num_requests - transfer.num_prompts
        inbox = self._inbox
        inbox.transfers.append(transfer)
        if transfer.sent_s[0] + transfer.latency_s < inbox.announce_before_s:
            inbox.announce(transfer)

    @property
    def num_bytes(self) -> float:
        """Bytes that it has been given since the start of the run."""
        return self.num_tokens * self._bytes_per_token

    def backlog_s(self, now: float) -> float:
        """How long it has yet to send at what it has been given."""
        carried = self._still_carried(now)
        free_s = max(sent for sent, _ in carried) if carried else self.free_s
        return max(free_s - now, 0.0)

    def busy_s(self, now: float) -> float:
        """How long it has been sending since the start of the run, at its full bandwidth."""
        bandwidth = self._bandwidth_bytes_per_s
        if not bandwidth:
            return 0.0
        # Requests that were given a part of the bandwidth leave a part of their bytes to send.
        carried = self._still_carried(now)
        unsent_s = (
            sum((sent - now) * part for sent, part in carried) / bandwidth
            if carried
            else max(self.free_s - now, 0.0)
        )
        seconds, nbytes = self._before
        return seconds + (self.num_bytes - nbytes) / bandwidth - unsent_s

    def _still_carried(self, now: float) -> list[tuple[float, float]]:
        """When each request of :meth:`carry` that is not yet sent will be, and its bandwidth."""
        self._carried = [(sent, part) for sent, part in self._carried if sent > now]
        return self._carried
