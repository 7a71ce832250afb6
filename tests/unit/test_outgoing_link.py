"""Emulated links of real clusters: arrival times worked out by hand."""

from __future__ import annotations

from random import Random

import pytest
from builders import prompt

from helixreal.net.outgoing_link import EmulatedSender, OutgoingLink
from helixsim.control.cluster_view import ClusterView
from helixsim.control.routing.policy import RoutingPoint
from helixsim.models.links import DeliveryQueue
from helixsim.models.messages import MessageEgress, MessageLink, ReceivingNic
from helixsim.physics.performance_model import SendingCosts
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Route
from helixsim.steps import Batch

COSTS = SendingCosts(message_s=0.25, bytes_per_s=16.0)


def make_link(bandwidth=8.0, *, is_emulated=True, sender=None, to_coordinator=False):
    """Half a second of latency, 2 bytes a token."""
    return OutgoingLink(
        bandwidth,
        0.5,
        2.0,
        is_emulated=is_emulated,
        sender=sender,
        to_coordinator=to_coordinator,
    )


def test_requests_go_one_behind_the_other():
    link = make_link()
    # 8, 2 and 24 bytes at 8 bytes/s; each arrives half a second after it has been sent.
    assert link.arrival_times(10.0, [4, 1, 12]) == [11.5, 11.75, 14.75]
    assert (link.num_bytes, link.num_requests) == (34.0, 3)
    assert link.arrival_times(12.0, [4]) == [15.75]  # the link is free at 14.25
    assert link.arrival_times(20.0, [4]) == [21.5]
    assert link.arrival_times(30.0, []) == []
    assert (link.num_bytes, link.num_requests) == (50.0, 5)


def test_a_link_without_bandwidth_has_its_latency_only():
    assert make_link(bandwidth=0.0).arrival_times(1.0, [4, 4]) == [1.5, 1.5]


def test_links_that_are_not_emulated_count_only():
    link = make_link(is_emulated=False, sender=EmulatedSender(COSTS, 1e12, "x"))
    assert link.arrival_times(10.0, [4, 1]) == []
    assert (link.num_bytes, link.num_requests) == (10.0, 2)


def test_the_coordinator_is_sent_whole_passes_without_sending_costs_and_one_token_with_them():
    free = make_link(to_coordinator=True)
    assert free.arrival_times(0.0, [4]) == [1.5]
    assert free.num_bytes == 8.0
    costly = make_link(sender=EmulatedSender(COSTS, 1e12, "x"), to_coordinator=True)
    # Handed over from 0 to 0.375 s; 2 bytes at 8 bytes/s take 0.25 s from the start.
    assert costly.arrival_times(0.0, [4]) == [0.875]
    assert costly.num_bytes == 2.0


def test_a_sender_hands_messages_over_one_after_another():
    sender = EmulatedSender(COSTS, 1e12, "x")
    assert sender.occupy(1.0, 8.0) == (1.0, 1.75)
    assert sender.occupy(1.0, 8.0) == (1.75, 2.5)
    assert sender.occupy(5.0, 0.0) == (5.0, 5.25)
    assert sender.draw_delay_s() == 0.0


def test_a_network_interface_may_be_slower_than_the_host():
    assert EmulatedSender(COSTS, 4.0, "x").occupy(0.0, 8.0) == (0.0, 2.25)


def test_all_links_of_a_machine_share_its_sender():
    sender = EmulatedSender(COSTS, 1e12, "x")
    slow, fast = make_link(sender=sender), make_link(bandwidth=1e9, sender=sender)
    # 8 bytes take 0.75 s to hand over, and a second on the slow link.
    assert slow.arrival_times(0.0, [4]) == [1.5]
    assert fast.arrival_times(0.0, [4]) == [2.0]  # handed over from 0.75 to 1.5 s
    # From 1.5 s, when the slow link is free.
    assert slow.arrival_times(0.0, [4]) == [3.0]


def test_a_busy_link_holds_back_what_is_handed_over():
    sender = EmulatedSender(COSTS, 1e12, "x")
    link = make_link(bandwidth=2.0, sender=sender)
    # 4 s on the link for each; handing over takes 0.75 s.
    assert link.arrival_times(0.0, [4, 4]) == [4.5, 8.5]


def test_delivery_delays_are_drawn_from_a_stream_of_the_machine():
    costs = SendingCosts(message_s=0.25, bytes_per_s=16.0, delivery_jitter_s=0.125)
    first, same, other = (EmulatedSender(costs, 1e12, seed) for seed in ("a", "a", "b"))
    drawn = [first.draw_delay_s() for _ in range(4000)]
    assert drawn == [same.draw_delay_s() for _ in range(4000)]
    assert drawn[0] != other.draw_delay_s()
    assert min(drawn) >= 0
    assert sum(drawn) / 4000 == pytest.approx(0.125, rel=0.1)
    link = make_link(sender=EmulatedSender(costs, 1e12, "a"))
    assert link.arrival_times(0.0, [4]) == [1.5 + drawn[0]]


# -- the simulator's egress follows the same rule


class RoutedPolicy:
    """A policy that has chosen all routes at admission."""

    routing_point = RoutingPoint.ADMISSION


class HopByHopPolicy:
    """A policy that sends every prompt over one link."""

    routing_point = RoutingPoint.HOP

    def __init__(self, placed):
        self.placed = placed

    def choose(self, machine, request):
        assert machine == 0
        return self.placed


class NotingView(ClusterView):
    """Keeps the requests of which it is told."""

    def __init__(self):
        super().__init__(2)
        self.log = []

    def passed(self, requests, now):
        self.log.append((now, [request.index for request in requests]))


class Egress:
    """Machine 0 with a link to node 1 and one to the coordinator, 2."""

    def __init__(self, costs=COSTS, *, nic=1e12, receiver=1e12, make_policy=None, view=None):
        self.inboxes = [DeliveryQueue(), DeliveryQueue()]
        for inbox in self.inboxes:
            inbox.announce = lambda transfer: None
        placed = [
            PlacedLink(0, 0, 1, 8.0, 0.5, entry_layer=3, bytes_per_token=2.0),
            PlacedLink(1, 0, 2, 8.0, 0.5, entry_layer=0, bytes_per_token=2.0),
        ]
        numbers = iter(range(100))
        self.links = [
            MessageLink(
                each, inbox, ReceivingNic(receiver), lambda: next(numbers), to_coordinator=is_last
            )
            for each, inbox, is_last in zip(placed, self.inboxes, (False, True), strict=True)
        ]
        policy = RoutedPolicy() if make_policy is None else make_policy(placed[0])
        self.egress = MessageEgress(
            0, self.links, policy, lambda node: 8 if node == 1 else 0, costs, nic, Random(0), view
        )

    def request(self, tokens, index, link=0):
        made = prompt(tokens, index)
        made.onward = {0: self.links[link]}
        return made

    def arrivals(self, link):
        """(time, request) in order of arrival."""
        return [
            (sent + transfer.latency_s, request.index)
            for transfer in self.inboxes[link].transfers
            for sent, request in zip(transfer.sent_s, transfer.requests, strict=True)
        ]


def test_messages_leave_one_after_another_over_all_links():
    under_test = Egress()
    requests = [under_test.request(4, 0), under_test.request(4, 1, link=1)]
    under_test.egress.depart(Batch.of([*requests, under_test.request(4, 2)]), 0.0)
    # Handed over until 0.75, 1.125 and 1.875 s; the second carries one token.
    assert under_test.arrivals(0) == [(1.5, 0), (2.625, 2)]
    assert under_test.arrivals(1) == [(1.625, 1)]
    assert [link.num_bytes for link in under_test.links] == [16.0, 2.0]
    assert [link.num_requests for link in under_test.links] == [2, 1]
    assert under_test.links[0].busy_s(10.0) == 2.0
    assert under_test.links[0].backlog_s(2.0) == 0.125


def test_messages_leave_as_they_become_ready():
    under_test = Egress()
    requests = [under_test.request(4, index) for index in range(2)]
    under_test.egress.depart_each(requests, [1.0, 5.0])
    assert under_test.arrivals(0) == [(2.5, 0), (6.5, 1)]


def test_the_slowest_of_sender_link_and_receiver_sets_the_pace():
    under_test = Egress(receiver=4.0)
    requests = [under_test.request(4, index) for index in range(2)]
    under_test.egress.depart(Batch.of(requests), 0.0)
    assert under_test.arrivals(0) == [(2.5, 0), (4.5, 1)]  # 2 s each at 4 bytes/s
    under_test = Egress(nic=2.0)
    under_test.egress.depart(Batch.of([under_test.request(4, 0)]), 0.0)
    assert under_test.arrivals(0) == [(4.75, 0)]  # handed over in 4.25 s


def test_egress_and_outgoing_links_agree_without_jitter():
    under_test = Egress()
    sizes = [3, 1, 7, 2, 5]
    requests = [under_test.request(tokens, index) for index, tokens in enumerate(sizes)]
    under_test.egress.depart(Batch.of(requests), 1.0)
    link = make_link(sender=EmulatedSender(COSTS, 1e12, "x"))
    assert [at for at, _ in under_test.arrivals(0)] == link.arrival_times(1.0, sizes)


def test_a_prompt_without_a_route_is_given_its_next_node():
    view = NotingView()
    under_test = Egress(make_policy=HopByHopPolicy, view=view)
    request = prompt(4, 7)
    request.onward, request.route = {}, Route([])
    under_test.egress.depart(Batch.of([request]), 2.0)
    assert under_test.arrivals(0) == [(3.5, 7)]
    assert request.onward == {0: under_test.links[0]}
    assert [(each.node, each.start_layer, each.end_layer) for each in request.route.stages] == [
        (1, 3, 8)
    ]
    assert (request.via_link, request.sent_s) == (0, 2.0)
    assert view.log == [(2.0, [7])]
    # Its decodes take the same link.
    under_test.egress.depart(Batch.of([request]), 9.0)
    assert len(request.route.stages) == 1


def test_no_chunk_arrives_before_the_one_ahead_of_it():
    link = make_link()
    assert link.in_order(1, 5.0, is_followed=True) == 5.0
    assert link.in_order(2, 3.0, is_followed=True) == 3.0
    assert link.in_order(1, 4.0, is_followed=True) == 5.0
    assert link.in_order(1, 4.5, is_followed=False) == 5.0
    assert link.in_order(1, 1.0, is_followed=False) == 1.0  # it had ended
    link.forget([2, 9])
    assert link.in_order(2, 1.0, is_followed=True) == 1.0
