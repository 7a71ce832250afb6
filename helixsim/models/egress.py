"""How requests leave a machine: one egress a machine, one kind for each routing point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from helixsim.control.cluster_view import ClusterView
from helixsim.control.routing.policy import Chooser, HopPolicy, LinkPolicy
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import SerialLink
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request, Stage
from helixsim.steps import Batch

LEAST_BANDWIDTH_BYTES_PER_S = 10.0
"""A link that could carry no more than this now is not used now."""


class Egress(Protocol):
    """Sends on what a machine is done with."""

    def depart(self, batch: Batch, now: float) -> object:
        """Take a group that is ready to leave now; what is returned does not matter."""
        ...

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Take requests that have become ready at times of their own, in that order."""
        ...

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that wait here and are not wanted any more."""
        ...


class SingleLinkEgress:
    """For routes that are known, on a machine with one link: there is nothing to divide."""

    def __init__(self, link: SerialLink) -> None:
        # The link's own methods: most batches leave by one, and a call more would cost.
        self.depart: Callable[[Batch, float], object] = link.send
        self.depart_each: Callable[[list[Request], list[float]], None] = link.send_each

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """No request waits here."""


def routed_egress(machine: int, links: Sequence[SerialLink]) -> Egress:
    """The egress of a machine from which routes are known."""
    return SingleLinkEgress(links[0]) if len(links) == 1 else RoutedEgress(machine)


class RoutedEgress:
    """For routes that are known: every request goes where its route says."""

    def __init__(self, machine: int) -> None:
        self._machine = machine

    def depart(self, batch: Batch, now: float) -> object:
        """Send a group on, divided by link."""
        machine = self._machine
        groups: dict[SerialLink, list[Request]] = {}
        for request in batch.requests:
            link = request.onward[machine]
            if link in groups:
                groups[link].append(request)
            else:
                groups[link] = [request]
        if len(groups) == 1:
            return link.send(batch, now)
        for link, requests in groups.items():
            link.send(batch.part(requests), now)
        return None

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests on as they become ready."""
        groups: dict[SerialLink, tuple[list[Request], list[float]]] = {}
        for request, ready in zip(requests, ready_s, strict=True):
            group = groups.setdefault(request.onward[self._machine], ([], []))
            group[0].append(request)
            group[1].append(ready)
        for link, (members, times) in groups.items():
            link.send_each(members, times)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """No request waits here."""


class HopEgress:
    """For policies that choose when a prompt leaves.

    With a `view`, transit times are kept in it: the machine is a node and the policy needs them.
    """

    def __init__(
        self,
        machine: int,
        links: Sequence[SerialLink],
        policy: HopPolicy,
        end_layer: Callable[[int], int],
        view: ClusterView | None,
    ) -> None:
        self._machine = machine
        self._links = {link.index: link for link in links}
        self._policy = policy
        self._end_layer = end_layer
        self._view = view

    def depart(self, batch: Batch, now: float) -> None:
        """Note transit times, then choose for the prompts, then send link by link."""
        machine = self._machine
        if self._view is not None:
            self._view.passed(batch.requests, now)
        if batch.num_prompts:
            for request in batch.requests:
                if request.is_prefill and machine not in request.onward:
                    link = self._policy.choose(machine, request.origin)
                    take_link(request, link, self._links, self._end_layer)
        groups: dict[int, list[Request]] = {}
        for request in batch.requests:
            index = request.onward[machine].index
            if index in groups:
                groups[index].append(request)
            else:
                groups[index] = [request]
        for index in sorted(groups):
            requests = groups[index]
            started = self._links[index].send(batch.part(requests), now)
            for request, start in zip(requests, started, strict=False):
                request.via_link, request.sent_s = index, start

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests on as they become ready."""
        for request, ready in zip(requests, ready_s, strict=True):
            self.depart(Batch.of([request]), ready)

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """No request waits here."""


def take_link(
    request: Request,
    placed: PlacedLink,
    links: Mapping[int, SerialLink],
    end_layer: Callable[[int], int],
) -> None:
    """Extend a prompt's route over a link."""
    assert isinstance(request.onward, dict)
    assert request.route is not None
    request.onward[placed.source] = links[placed.index]
    end = end_layer(placed.target)
    if end:
        request.route.stages.append(Stage(placed.target, placed.entry_layer, end))


def egress_of_front_ends(egresses: Sequence[Egress]) -> Egress:
    """The egress of all front ends, given that of each."""
    return egresses[0] if len(egresses) == 1 else FrontEndEgress(egresses)


class FrontEndEgress:
    """Sends each request from its own front end."""

    def __init__(self, egresses: Sequence[Egress]) -> None:
        self._egresses = egresses

    def depart(self, batch: Batch, now: float) -> None:
        """Send a group that is ready now, divided by front end."""
        for front_end, places in _by_front_end(batch.requests).items():
            group = batch.part([batch.requests[place] for place in places])
            self._egresses[front_end].depart(group, now)

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Send requests as they become ready."""
        for front_end, places in _by_front_end(requests).items():
            self._egresses[front_end].depart_each(
                [requests[place] for place in places], [ready_s[place] for place in places]
            )

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that wait at any front end and are not wanted any more."""
        for egress in self._egresses:
            egress.drop_unless(is_wanted)


def _by_front_end(requests: Sequence[Request]) -> dict[int, list[int]]:
    """Number of a front end -> places of its requests."""
    groups: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.front_end, []).append(place)
    return groups


class SharedNic:
    """What of a machine's network interface is free, when links take bandwidth by the request.

    Attributes
    ----------
    outbound_free, inbound_free
        Bytes per second.
    held_up
        Egresses that would have sent here but for lack of inbound bandwidth.
    """

    __slots__ = ("held_up", "inbound_free", "outbound_bytes_per_s", "outbound_free")

    def __init__(self, inbound_bytes_per_s: float, outbound_bytes_per_s: float) -> None:
        self.inbound_free = inbound_bytes_per_s
        self.outbound_bytes_per_s = outbound_bytes_per_s
        self.outbound_free = outbound_bytes_per_s
        self.held_up: dict[ContendedEgress, None] = {}


class ContendedEgress:
    """For policies that choose when links are free: one request at a time and link.

    Every attempt to send works out what each link could carry now, then goes through the requests
    that wait, in order of readiness. Decodes take the link of their route; prompts ask the policy.
    """

    def __init__(
        self,
        environment: ExactEnvironment,
        machine: int,
        links: Sequence[SerialLink],
        nics: Sequence[SharedNic],
        policy: LinkPolicy,
        end_layer: Callable[[int], int],
    ) -> None:
        self._environment = environment
        self._machine = machine
        self._links = {link.index: link for link in links}
        self._used = dict.fromkeys(self._links, 0.0)
        self._nics = nics
        self._policy = policy
        self._end_layer = end_layer
        self._queue: list[Request] = []
        self._retry = ReusableEvent(environment, self.attempt)

    def depart(self, batch: Batch, now: float) -> None:
        """Let a group queue up, and try to send."""
        self._queue.extend(batch.requests)
        self.attempt()

    def depart_each(self, requests: list[Request], ready_s: list[float]) -> None:
        """Let requests queue up, and try to send after each."""
        for request in requests:
            self._queue.append(request)
            self.attempt()

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Drop requests that wait for a link and are not wanted any more."""
        self._queue = [request for request in self._queue if is_wanted(request)]

    def attempt(self) -> None:
        """Send what the free links can take."""
        if not self._queue:
            return
        usable = self._usable()
        if not usable:
            return
        choose = self._policy.candidates(
            self._machine, [self._links[index].placed for index in usable]
        )
        taken: dict[int, Request] = {}
        left: list[Request] = []
        held_up: set[Request] = set()  # of which an earlier chunk waits
        for place, request in enumerate(self._queue):
            if len(taken) == len(usable) == 1:
                # The rest can only wait, and a choice from one draws no random numbers.
                left += self._queue[place:]
                break
            if request.origin in held_up:
                left.append(request)
                continue
            index = self._link_for(request, usable, taken, choose)
            if index is None:
                left.append(request)
                if request.origin is not request:
                    held_up.add(request.origin)
            else:
                taken[index] = request
        self._queue = left
        for index in sorted(taken):
            self._send(taken[index], self._links[index], usable[index])

    def _link_for(
        self,
        request: Request,
        usable: Mapping[int, float],
        taken: Mapping[int, Request],
        choose: Chooser,
    ) -> int | None:
        """The number of the link that a request takes now, if any."""
        link: SerialLink | None = request.onward.get(self._machine)
        if link is not None:
            index = link.index
            return index if index in usable and index not in taken else None
        placed = choose(request.origin, taken)
        if placed is None:
            return None
        take_link(request, placed, self._links, self._end_layer)
        return placed.index

    def _usable(self) -> dict[int, float]:
        nic = self._nics[self._machine]
        fair = nic.outbound_bytes_per_s / len(self._links)
        usable: dict[int, float] = {}
        for index, link in self._links.items():
            receiver = self._nics[link.placed.target]
            if receiver.inbound_free <= LEAST_BANDWIDTH_BYTES_PER_S:
                receiver.held_up[self] = None
            bandwidth = min(
                fair - self._used[index],
                link.placed.bandwidth_bytes_per_s - self._used[index],
                nic.outbound_free,
                receiver.inbound_free,
            )
            if bandwidth > LEAST_BANDWIDTH_BYTES_PER_S:
                usable[index] = bandwidth
        return usable

    def _send(self, request: Request, link: SerialLink, bandwidth: float) -> None:
        environment, index = self._environment, link.index
        sender, receiver = self._nics[self._machine], self._nics[link.placed.target]
        now = environment.now
        sent = link.carry(request, now, bandwidth)
        self._used[index] += bandwidth
        sender.outbound_free -= bandwidth
        receiver.inbound_free -= bandwidth

        def give_back() -> None:
            self._used[index] -= bandwidth
            sender.outbound_free += bandwidth
            receiver.inbound_free += bandwidth
            # Requests that wait try again once all links that come free now have done so.
            self._retry.schedule(environment.now, environment.now)
            for egress in receiver.held_up:
                if egress is not self:
                    egress._retry.schedule(environment.now, environment.now)
            receiver.held_up.clear()

        ReusableEvent(environment, give_back).schedule(sent, now)
