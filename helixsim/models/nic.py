"""Links and what travels over them.

A link sends one request after another. Its times have a closed form: a request starts when the
link is free, the link is free again when it has been sent, and it arrives one latency later.
So nothing need happen in between: a batch that leaves a node becomes one :class:`Train` per
link, with the times of all its requests, and the receiver looks into its :class:`Inbox` when it
wants to know who has come.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from helixsim.batching import Batch
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request


class Train:
    """Requests that one machine sent over one link, one behind the other.

    Attributes
    ----------
    batch
        The requests, in order, with their totals.
    entry_layer
        The layer at which they go on.
    sent_s
        When each had been sent; it arrives one latency later.
    started_s
        When the link began to send each. Empty: each began when the one before had been sent,
        the first at `first_started_s`.
    number
        Trains are numbered in the order in which they were sent, as all events are.
    """

    __slots__ = (
        "batch",
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
        batch: Batch,
        link: Link,
        sent_s: list[float],
        first_started_s: float,
        started_s: list[float],
        number: int,
    ) -> None:
        self.batch = batch
        self.entry_layer = link.entry_layer
        self.latency_s = link.latency_s
        self.sent_s = sent_s
        self.started_s = started_s
        self.first_started_s = first_started_s
        self.last_arrival_s = sent_s[-1] + link.latency_s
        self.number = number

    @property
    def first_arrival_s(self) -> float:
        """When the first of them arrives."""
        return self.sent_s[0] + self.latency_s

    def split(self, now: float) -> Train:
        """Take out and return those that have arrived by now, at least one; the rest stays."""
        latency, sent, started = self.latency_s, self.sent_s, self.started_s
        n = 1
        if sent[1] + latency <= now:
            n = bisect_right(sent, now, key=lambda at: at + latency)
        whole = self.batch
        head = object.__new__(Train)
        head.batch = whole.part(whole.requests[:n])
        head.entry_layer, head.latency_s, head.number = self.entry_layer, latency, self.number
        head.first_started_s = self.first_started_s
        head.sent_s, head.started_s = sent[:n], started[:n]
        head.last_arrival_s = sent[n - 1] + latency
        self.batch = Batch(
            whole.requests[n:],
            whole.num_prompts - head.batch.num_prompts,
            whole.prompt_tokens - head.batch.prompt_tokens,
        )
        self.sent_s, self.started_s = sent[n:], started[n:]
        self.first_started_s = started[n] if started else sent[n - 1]
        return head

    def passengers(self) -> list[tuple[float, float, float, int, int, Request]]:
        """Every request with what orders arrivals: (arrival, sent, started, train, place)."""
        started = self.started_s or [self.first_started_s, *self.sent_s]
        latency, number = self.latency_s, self.number
        return [
            (sent + latency, sent, started[place], number, place, request)
            for place, (sent, request) in enumerate(
                zip(self.sent_s, self.batch.requests, strict=True)
            )
        ]


class Inbox:
    """Trains on their way to one machine, or arrived there and not yet looked at."""

    __slots__ = ("_on_train", "trains")

    def __init__(self) -> None:
        self.trains: list[Train] = []
        self._on_train: Callable[[Train], None] = lambda train: None

    def watch(self, on_train: Callable[[Train], None]) -> None:
        """Have a function called with every train that sets out for here."""
        self._on_train = on_train

    def send(self, train: Train) -> None:
        """Put a train on its way here."""
        self.trains.append(train)
        self._on_train(train)

    def next_arrival(self) -> Train | None:
        """The train whose first request is the next to arrive, if any is on its way."""
        return min(self.trains, key=_first_arrival, default=None)

    def take(self, now: float) -> list[Train]:
        """Remove and return what has arrived by now, as trains in order of first arrival.

        A train that has arrived in part is divided.
        """
        arrived: list[Train] = []
        left: list[Train] = []
        for train in self.trains:
            if train.last_arrival_s <= now:
                arrived.append(train)
            elif train.sent_s[0] + train.latency_s > now:
                left.append(train)
            else:
                arrived.append(train.split(now))
                left.append(train)
        if arrived:
            self.trains = left
            if len(arrived) > 1:
                arrived.sort(key=_first_arrival)
        return arrived


def _first_arrival(train: Train) -> tuple[float, float, float, int]:
    sent = train.sent_s[0]
    return sent + train.latency_s, sent, train.first_started_s, train.number


def interleaved(trains: list[Train]) -> bool:
    """Whether trains, in order of first arrival, overlap in time."""
    return any(
        before.last_arrival_s >= after.sent_s[0] + after.latency_s
        for before, after in zip(trains, trains[1:], strict=False)
    )


def merge(trains: list[Train]) -> list[tuple[float, float, float, int, int, Request]]:
    """The passengers of several trains, in order of arrival."""
    passengers = [passenger for train in trains for passenger in train.passengers()]
    passengers.sort()
    return passengers


class Link:
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
        "_busy_s",
        "_bytes_per_token",
        "_decode_s",
        "_number",
        "entry_layer",
        "free_s",
        "inbox",
        "latency_s",
        "num_requests",
        "num_tokens",
        "placed",
    )

    def __init__(
        self,
        placed: PlacedLink,
        bandwidth_bytes_per_s: float,
        inbox: Inbox,
        number: Callable[[], int],
    ) -> None:
        self.placed = placed
        self.inbox = inbox
        self.entry_layer = placed.entry_layer
        self.latency_s = placed.latency_s
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self._bytes_per_token = placed.bytes_per_token
        self._decode_s = (
            placed.latency_s + placed.bytes_per_token / bandwidth_bytes_per_s
            if bandwidth_bytes_per_s
            else float("inf")
        )
        self._number = number
        self.free_s = 0.0
        self.num_tokens = 0
        self.num_requests = 0
        self._busy_s = 0.0

    def send(self, batch: Batch, now: float) -> None:
        """Send a group that is ready now, in order.

        Times are summed as ``(free + (latency + transmission)) - latency``, which rounds as
        the published simulator does.
        """
        free = start = self.free_s if self.free_s > now else now
        latency, decode_s = self.latency_s, self._decode_s
        sent: list[float] = []
        note = sent.append
        if batch.num_prompts:
            for request in batch.requests:
                if request.iteration:
                    free = free + decode_s - latency
                else:
                    free = free + self.transit_s(request.prompt_tokens) - latency
                note(free)
        else:
            for _ in batch.requests:
                free = free + decode_s - latency
                note(free)
        self._depart(Train(batch, self, sent, start, [], self._number()), start, free)

    def send_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests that become ready at times of their own, in that order."""
        latency, free = self.latency_s, self.free_s
        started: list[float] = []
        sent: list[float] = []
        for request, ready in zip(requests, ready_s, strict=True):
            if free < ready:
                free = ready
            started.append(free)
            free = free + self.transit_s(request.step_tokens) - latency
            sent.append(free)
        batch = Batch.of(requests)
        self._depart(
            Train(batch, self, sent, started[0], started, self._number()), started[0], free
        )

    def carry(self, request: Request, now: float, bandwidth_bytes_per_s: float) -> float:
        """Send one request at once, with the bandwidth given; return when it has been sent."""
        nbytes = request.step_tokens * self._bytes_per_token
        sent = now + (self.latency_s + nbytes / bandwidth_bytes_per_s) - self.latency_s
        train = Train(Batch.of([request]), self, [sent], now, [], self._number())
        self._depart(train, now, sent)
        return sent

    def transit_s(self, num_tokens: int) -> float:
        """How long so many tokens take from the start of sending to arrival."""
        return self.latency_s + num_tokens * self._bytes_per_token / self._bandwidth_bytes_per_s

    def _depart(self, train: Train, start: float, free: float) -> None:
        self.free_s = free
        self._busy_s += free - start
        batch = train.batch
        self.num_tokens += batch.num_tokens
        self.num_requests += len(batch.requests)
        self.inbox.send(train)

    def backlog_s(self, now: float) -> float:
        """How long it has yet to send at what it has been given."""
        return max(self.free_s - now, 0.0)

    def busy_s(self, now: float) -> float:
        """How long it has been sending since the start of the run."""
        return self._busy_s - self.backlog_s(now)

    @property
    def num_bytes(self) -> float:
        """Bytes that it has been given since the start of the run."""
        return self.num_tokens * self._bytes_per_token
