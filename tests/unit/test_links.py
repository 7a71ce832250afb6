"""Links and transfers: times worked out by hand."""

from __future__ import annotations

from itertools import count

import pytest
from builders import decode, prompt

from helixsim.models.links import DeliveryQueue, SerialLink, Transfer, interleaved, merge
from helixsim.placement.topology import PlacedLink
from helixsim.steps import Batch


class NotingInbox(DeliveryQueue):
    """An inbox that keeps what is announced."""

    def __init__(self):
        super().__init__()
        self.announced = []
        self.announce = self.announced.append


@pytest.fixture
def inbox():
    return NotingInbox()


@pytest.fixture
def make_link(inbox):
    """Links into one inbox, 2 bytes a token, that enter at layer 3."""
    numbers = count(100)

    def make(bandwidth=8.0, latency=0.5, index=0):
        placed = PlacedLink(index, 0, 1, bandwidth, latency, entry_layer=3, bytes_per_token=2.0)
        return SerialLink(placed, bandwidth, inbox, lambda: next(numbers))

    return make


def send(link, requests, now):
    link.send(Batch.of(requests), now)


def arrivals(transfers):
    return [(round(at, 12), request.index) for at, *_, request in merge(transfers)]


def indices(transfer):
    return [request.index for request in transfer.requests]


# -- times


def test_requests_go_one_behind_the_other(make_link, inbox):
    link = make_link()
    send(link, [prompt(4, 0), decode(7, 1), prompt(12, 2)], 10.0)
    (transfer,) = inbox.transfers
    # 8, 2 and 24 bytes at 8 bytes/s; each arrives half a second after it has been sent.
    assert transfer.sent_s == [11.0, 11.25, 14.25]
    assert [at for at, *_ in transfer.deliveries()] == [11.5, 11.75, 14.75]
    assert [started for _, _, started, *_ in transfer.deliveries()] == [10.0, 11.0, 11.25]
    assert (transfer.first_arrival_s, transfer.last_arrival_s) == (11.5, 14.75)
    assert (transfer.entry_layer, transfer.num_prompts, transfer.prompt_tokens) == (3, 2, 16)
    assert link.free_s == 14.25


def test_a_group_waits_until_the_link_is_free(make_link, inbox):
    link = make_link()
    send(link, [prompt(40, 0)], 1.0)
    send(link, [prompt(4, 1)], 2.0)
    send(link, [prompt(4, 2)], 20.0)
    assert [transfer.sent_s for transfer in inbox.transfers] == [[11.0], [12.0], [21.0]]
    assert [transfer.first_started_s for transfer in inbox.transfers] == [1.0, 11.0, 20.0]
    assert [transfer.number for transfer in inbox.transfers] == [100, 101, 102]


def test_requests_with_times_of_their_own(make_link, inbox):
    link = make_link()
    link.send_each([decode(1, 0), decode(1, 1), prompt(4, 2)], [1.0, 1.125, 5.0])
    (transfer,) = inbox.transfers
    assert transfer.started_s == [1.0, 1.25, 5.0]
    assert transfer.sent_s == [1.25, 1.5, 6.0]


def test_times_round_as_published(make_link, inbox):
    link = make_link(bandwidth=3.0, latency=0.1)
    send(link, [prompt(1, 0), prompt(5, 1)], 0.7)
    first = (0.7 + (0.1 + 2 / 3)) - 0.1
    assert first != 0.7 + 2 / 3  # the order of the sum matters, or this would test nothing
    assert inbox.transfers[0].sent_s == [first, (first + (0.1 + 10 / 3)) - 0.1]
    assert inbox.transfers[0].last_arrival_s == inbox.transfers[0].sent_s[1] + 0.1


def test_a_link_that_may_not_be_used_has_no_times(make_link):
    assert make_link(bandwidth=0).busy_s(1.0) == 0.0


def test_one_request_with_a_bandwidth_given(make_link, inbox):
    link = make_link()
    assert link.carry(prompt(4, 0), 1.0, 4.0) == 3.0
    assert inbox.transfers[0].sent_s == [3.0]
    assert inbox.transfers[0].started_s == [1.0]


def test_a_transfer_goes_on_as_it_is_on_the_next_link(make_link, inbox):
    first = make_link()
    first.send(Batch.of([decode(1, 0), decode(1, 1)]), 0.0)
    (transfer,) = inbox.take(10.0)
    second = make_link(bandwidth=2.0, latency=0.25)
    second.send(transfer, 10.0)
    assert inbox.transfers == [transfer]
    assert transfer.sent_s == [11.0, 12.0]
    assert (transfer.latency_s, transfer.last_arrival_s, transfer.number) == (0.25, 12.25, 101)
    assert transfer.first_started_s == 10.0


# -- gauges


def test_a_link_counts_what_it_is_given(make_link):
    link = make_link()
    send(link, [prompt(4, 0), decode(9, 1)], 0.0)
    assert (link.num_requests, link.num_tokens, link.num_bytes) == (2, 5, 10.0)


def test_a_link_is_busy_while_it_sends(make_link):
    link = make_link()
    send(link, [prompt(4, 0)], 1.0)  # a second
    send(link, [prompt(4, 1)], 5.0)  # another
    assert [link.busy_s(at) for at in (5.0, 5.5, 6.0, 9.0)] == [1.0, 1.5, 2.0, 2.0]
    assert [link.backlog_s(at) for at in (5.0, 5.5, 6.0, 9.0)] == [1.0, 0.5, 0.0, 0.0]


def test_a_link_is_busy_in_part_while_it_has_part_of_its_bandwidth(make_link):
    link = make_link()
    link.carry(prompt(4, 0), 1.0, 2.0)  # 8 bytes at a quarter of the bandwidth: 4 s
    link.carry(prompt(4, 1), 2.0, 4.0)  # and 8 bytes at half of it: 2 s
    gauges = [(link.busy_s(at), link.backlog_s(at)) for at in (2.0, 3.0, 4.0, 4.5, 9.0)]
    assert gauges == [(0.25, 3.0), (1.0, 2.0), (1.75, 1.0), (1.875, 0.5), (2.0, 0.0)]


# -- transfers


def test_a_transfer_that_has_arrived_in_part_is_divided(make_link, inbox):
    send(make_link(), [prompt(4, 0), decode(1, 1), prompt(4, 2), decode(1, 3)], 0.0)
    # They arrive at 1.5, 1.75, 2.75 and 3.
    (transfer,) = inbox.transfers
    head = transfer.split(2.0)
    assert (indices(head), head.sent_s) == ([0, 1], [1.0, 1.25])
    assert (indices(transfer), transfer.sent_s) == ([2, 3], [2.25, 2.5])
    assert (head.num_prompts, head.prompt_tokens) == (1, 4)
    assert (transfer.num_prompts, transfer.prompt_tokens) == (1, 4)
    assert (head.first_started_s, transfer.first_started_s) == (0.0, 1.25)
    assert head.last_arrival_s == 1.75
    assert transfer.last_arrival_s == 3.0
    assert head.number == transfer.number


def test_dividing_includes_requests_that_arrive_at_that_instant(make_link, inbox):
    send(make_link(), [decode(1, 0), decode(1, 1), decode(1, 2)], 0.0)  # at 0.75, 1, 1.25
    head = inbox.transfers[0].split(1.0)
    assert indices(head) == [0, 1]
    assert (head.num_prompts, head.prompt_tokens) == (0, 0)


def test_dividing_rounds_as_arrivals_do():
    latency, sent = 0.3, 0.4
    now = sent + latency
    assert now - latency < sent  # or this would test nothing
    requests = [decode(1, index) for index in range(3)]
    transfer = Transfer(requests, 0, 0, 3, latency, [0.1, sent, 9.0], 0.0, None, 1)
    assert indices(transfer.split(now)) == [0, 1]


def test_dividing_keeps_starts_of_their_own(make_link, inbox):
    link = make_link()
    link.send_each([decode(1, 0), decode(1, 1), decode(1, 2)], [0.0, 2.0, 4.0])
    (transfer,) = inbox.transfers
    head = transfer.split(3.0)
    assert (head.started_s, transfer.started_s) == ([0.0, 2.0], [4.0])
    assert transfer.first_started_s == 4.0


# -- inboxes


def test_no_request_is_there_before_its_arrival(make_link, inbox):
    send(make_link(), [decode(1, 0)], 0.0)
    assert inbox.take(0.74) == []
    assert [indices(transfer) for transfer in inbox.take(0.75)] == [[0]]
    assert inbox.take(9.0) == []


def test_an_inbox_gives_what_has_come_from_all_links_in_order(make_link, inbox):
    slow = make_link(latency=2.0)
    quick = make_link(latency=0.125)
    send(slow, [decode(1, 0), decode(1, 1)], 0.0)  # at 2.25 and 2.5
    send(quick, [decode(1, 2), decode(1, 3)], 1.0)  # at 1.375 and 1.625
    send(quick, [decode(1, 4)], 4.0)  # at 4.375
    taken = inbox.take(2.25)
    assert [indices(transfer) for transfer in taken] == [[2, 3], [0]]
    assert [indices(transfer) for transfer in inbox.transfers] == [[1], [4]]
    assert not interleaved(taken)
    assert [indices(transfer) for transfer in inbox.take(9.0)] == [[1], [4]]


def test_the_next_to_arrive_need_not_be_the_first_sent(make_link, inbox):
    assert inbox.next_arrival() is None
    send(make_link(latency=2.0), [decode(1, 0)], 0.0)
    assert indices(inbox.next_arrival()) == [0]
    send(make_link(latency=0.125), [decode(1, 1)], 1.0)
    assert indices(inbox.next_arrival()) == [1]


def test_only_transfers_that_arrive_before_the_next_look_are_announced(make_link, inbox):
    link = make_link()
    inbox.announce_before_s = 1.0
    send(link, [decode(1, 0)], 0.0)  # at 0.75
    send(link, [decode(1, 1)], 0.0)  # at 1.0, when it looks anyway
    assert [indices(transfer) for transfer in inbox.announced] == [[0]]


def test_transfers_that_overlap_are_merged_by_arrival(make_link, inbox):
    send(make_link(latency=0.5), [decode(1, 0), decode(1, 1), decode(1, 2)], 0.0)  # .75 1 1.25
    send(make_link(latency=0.5), [decode(1, 3)], 0.625)  # at 1.375
    send(make_link(latency=0.625), [decode(1, 4)], 0.0)  # at 0.875
    taken = inbox.take(1.25)
    assert interleaved(taken)
    assert arrivals(taken) == [(0.75, 0), (0.875, 4), (1.0, 1), (1.25, 2)]
    assert arrivals(inbox.transfers) == [(1.375, 3)]


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        # All arrive at 1. Bandwidth, latency, start of sending of each link.
        ((8.0, 0.25, 0.5), (8.0, 0.5, 0.25), [1, 0]),  # sent first: at 0.5, not 0.75
        ((8.0, 0.5, 0.25), (4.0, 0.5, 0.0), [1, 0]),  # started first
        ((8.0, 0.5, 0.25), (8.0, 0.5, 0.25), [0, 1]),  # given to its link first
    ],
)
def test_arrivals_at_one_instant(make_link, inbox, first, second, order):
    for index, (bandwidth, latency, now) in enumerate((first, second)):
        send(make_link(bandwidth, latency), [decode(1, index)], now)
    taken = inbox.take(1.0)
    assert interleaved(taken)
    assert arrivals(taken) == [(1.0, index) for index in order]
    assert [indices(transfer)[0] for transfer in taken] == order


def test_order_in_the_batch_decides_between_requests_too_small_to_take_time(make_link, inbox):
    send(make_link(bandwidth=1e30), [decode(1, 0), decode(1, 1)], 1.0)
    assert arrivals(inbox.take(1.5)) == [(1.5, 0), (1.5, 1)]


def test_transfers_are_batches(make_link, inbox):
    send(make_link(), [decode(1, 0), prompt(5, 1)], 0.0)
    (transfer,) = inbox.take(9.0)
    assert isinstance(transfer, Transfer)
    assert transfer.num_tokens == 6
