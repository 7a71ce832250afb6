"""How tokens travel where decodes loop: to the front end, and back to the first node of a route.

All tokens of a step travel as one message. Both ways have a closed form, as links have: a message
is sent when the one before it has been, and arrives one latency later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from helixsim.cluster import Network
from helixsim.control.node_schedulers.scheduler import RETURNS
from helixsim.models.links import DeliveryQueue, Transfer
from helixsim.placement.topology import Topology
from helixsim.placement.ways_back import WayBack, way_back
from helixsim.requests import Request
from helixsim.steps import Batch


class Carrier(Protocol):
    """A link that also carries tokens."""

    latency_s: float

    def carry_tokens(self, num_tokens: int, now: float) -> float:
        """Carry tokens that are ready now as one message; when it has been sent."""
        ...


class ArrivedTokens:
    """Tokens in flight to the front ends, of which the coordinator learns at once.

    Attributes
    ----------
    messages
        (arrival, node, number of the message among the node's, requests with one token each).
    """

    def __init__(self) -> None:
        self.messages: list[tuple[float, int, int, list[Request]]] = []

    def take(self, until: float) -> list[tuple[float, int, int, list[Request]]]:
        """Remove and return the messages that arrive by then, in order."""
        arrived = [message for message in self.messages if message[0] <= until]
        if len(arrived) == len(self.messages):
            self.messages = []
        elif arrived:
            self.messages = [message for message in self.messages if message[0] > until]
        arrived.sort()
        return arrived

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop the tokens of requests that are not wanted any more."""
        self.messages = [
            (arrival, node, number, kept)
            for arrival, node, number, requests in self.messages
            if (kept := [request for request in requests if is_wanted(request)])
        ]


class TokenStream:
    """The tokens of one last node, in flight to the front ends of their requests.

    Parameters
    ----------
    node
        Number of the node.
    links
        Number of a front end -> the node's link to it.
    arrived
        Where the coordinator finds them.
    expect
        Called with (arrival, sent) of a message that the coordinator has to look at in time.
    """

    def __init__(
        self,
        node: int,
        links: Mapping[int, Carrier],
        arrived: ArrivedTokens,
        expect: Callable[[float, float], None],
    ) -> None:
        self._node = node
        self._links = links
        self._is_single = len(links) == 1
        self._arrived = arrived
        self._expect = expect
        self._num_messages = 0

    def send(self, requests: list[Request], now: float, *, is_notable: bool) -> None:
        """Send a token of each request; notable ones are first or last tokens of answers."""
        if self._is_single:
            self._send_to(self._links[requests[0].front_end], requests, now, is_notable=is_notable)
            return
        groups: dict[int, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.front_end, []).append(request)
        for front_end, group in groups.items():
            self._send_to(self._links[front_end], group, now, is_notable=is_notable)

    def _send_to(
        self, link: Carrier, requests: list[Request], now: float, *, is_notable: bool
    ) -> None:
        sent = link.carry_tokens(len(requests), now)
        arrival = sent + link.latency_s
        self._num_messages += 1
        self._arrived.messages.append((arrival, self._node, self._num_messages, requests))
        if is_notable:
            self._expect(arrival, sent)


class ReturnPath:
    """From the last node of a route to the first: the token that the next decode begins with.

    Parameters
    ----------
    way
        What connects them.
    inbox
        Of the first node.
    next_number
        Numbers what happens.
    """

    def __init__(
        self,
        way: WayBack,
        inbox: DeliveryQueue,
        next_number: Callable[[], int],
    ) -> None:
        self._s_per_token = way.bytes_per_token / way.bandwidth_bytes_per_s
        self._latency_s = way.latency_s
        self._inbox = inbox
        self._next_number = next_number
        self._free_s = 0.0

    def send(self, requests: list[Request], now: float) -> None:
        """Send requests back that are to go on."""
        start = max(self._free_s, now)
        self._free_s = sent = start + len(requests) * self._s_per_token
        batch = Batch(requests, 0, 0)
        transfer = Transfer(
            batch.requests,
            0,
            0,
            RETURNS,
            self._latency_s,
            [sent] * len(requests),
            start,
            None,
            self._next_number(),
        )
        inbox = self._inbox
        inbox.transfers.append(transfer)
        if transfer.first_arrival_s < inbox.announce_before_s:
            inbox.announce(transfer)


class ReturnPaths:
    """The ways back from one last node, made when they are needed first.

    Parameters
    ----------
    topology, network
        Nodes, and what connects them.
    node
        Number of the last node.
    inboxes
        Of all nodes.
    next_number
        Numbers what happens.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        node: int,
        inboxes: list[DeliveryQueue],
        next_number: Callable[[], int],
    ) -> None:
        self._topology = topology
        self._network = network
        self._node = node
        self._inboxes = inboxes
        self._next_number = next_number
        self._paths: dict[tuple[int, int], ReturnPath] = {}

    def send(self, requests: list[Request], now: float) -> None:
        """Send requests back, each to the first node of its route."""
        groups: dict[ReturnPath, list[Request]] = {}
        for request in requests:
            assert request.route is not None
            path = self._path_to(request.route.stages[0].node, request.front_end)
            groups.setdefault(path, []).append(request)
        for path, group in groups.items():
            path.send(group, now)

    def _path_to(self, first: int, front_end: int) -> ReturnPath:
        """The network's own link, or the way over the front end where there is none."""
        path = self._paths.get((first, front_end))
        if path is None:
            topology, network = self._topology, self._network
            if front_end and network.link(topology.name(self._node), topology.name(first)):
                path = self._path_to(first, 0)  # one link, whatever the front end
            else:
                way = way_back(topology, network, self._node, first, front_end)
                path = ReturnPath(way, self._inboxes[first], self._next_number)
            self._paths[first, front_end] = path
        return path
