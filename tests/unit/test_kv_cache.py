"""The blocks of a KV cache: none is lost, none is held twice."""

from __future__ import annotations

import pytest
from builders import decode, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from helixsim.control.kv_cache import KvCache, held_token_layers, reserve
from helixsim.control.prefix_cache import PrefixCache
from helixsim.requests import Route, Stage

BLOCK = 4

# -- counts


def test_blocks_of_the_whole_stage():
    kv = KvCache(10, BLOCK)
    assert [kv.missing("a", tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert kv.missing("a", 5, entry_layer=3) == 2  # a block spans all layers
    kv.allocate("a", 2)
    assert (kv.held("a"), kv.num_free, kv.num_used) == (2, 8, 2)
    assert [kv.missing("a", tokens) for tokens in (4, 8, 9)] == [0, 0, 1]
    assert kv.used_token_layers(3) == 2 * BLOCK * 3
    assert kv.free_tokens(3) == 8 * BLOCK
    kv.validate()


def test_blocks_by_layer():
    kv = KvCache(20, BLOCK, end_layer=5)
    assert [kv.missing("a", 5, entry) for entry in (2, 3, 4)] == [6, 4, 2]
    kv.allocate("a", 6)
    assert kv.missing("a", 5, 2) == 0
    assert kv.missing("a", 9, 2) == 3
    assert kv.used_token_layers(3) == 6 * BLOCK  # a block holds one layer
    assert kv.free_tokens(3) == 14 * BLOCK // 3
    kv.validate()


def test_room_in_tokens_and_layers_is_rounded_down_to_blocks():
    kv = KvCache.by_layer(16 * 10 + 15, end_layer=3)
    assert (kv.num_blocks, kv.block_tokens) == (10, 16)
    assert kv.missing("a", 17, entry_layer=1) == 4  # 2 blocks on each of 2 layers


def test_releasing_takes_all_blocks_back_once():
    kv = KvCache(10, BLOCK)
    kv.allocate("a", 2)
    kv.allocate("a", 3)
    assert kv.release("a")
    assert not kv.release("a")
    assert not kv.release("b")
    assert (kv.held("a"), kv.num_free) == (0, 10)


def test_blocks_that_are_not_free_cannot_be_given():
    kv = KvCache(3, BLOCK)
    kv.allocate("a", 2)
    with pytest.raises(AssertionError, match="kv-conserved: blocks that are not free"):
        kv.allocate("b", 2)
    assert (kv.num_free, kv.held("b")) == (1, 0)
    kv.validate()


def test_the_latest_request_comes_first():
    kv = KvCache(10, BLOCK)
    for key in "abc":
        kv.allocate(key, 1)
    kv.allocate("a", 1)  # more blocks do not make it later
    assert list(kv.latest()) == ["c", "b", "a"]
    kv.release("b")
    kv.allocate("b", 1)
    assert list(kv.latest()) == ["b", "c", "a"]


def test_requests_that_are_not_wanted_lose_their_blocks():
    kv = KvCache(10, BLOCK)
    kept, gone = prompt(3, 0), prompt(3, 1)
    for key in (kept, gone, "a key that is no request"):
        kv.allocate(key, 2)
    kv.drop_unless(lambda request: request is kept)
    assert [kv.held(key) for key in (kept, gone, "a key that is no request")] == [2, 0, 2]
    kv.clear()
    assert (kv.num_free, list(kv.latest())) == (10, [])
    kv.validate()


def test_reserving_gives_all_blocks_or_none():
    kv = KvCache(3, BLOCK)
    assert reserve(kv, "a", 8)
    assert reserve(kv, "a", 8)  # it has them
    assert not reserve(kv, "b", 5)
    assert (kv.held("a"), kv.held("b"), kv.num_free) == (2, 0, 1)


@pytest.mark.parametrize("change", [1, -1])
def test_a_block_that_is_lost_or_made_is_found(change):
    kv = KvCache(10, BLOCK)
    kv.allocate("a", 2)
    kv.num_free += change
    with pytest.raises(AssertionError, match=f"kv-conserved: 2 blocks held and {8 + change} free"):
        kv.validate()


# -- block tables


def test_blocks_have_numbers_from_the_first_on():
    kv = PrefixCache(4, BLOCK, first_block=1)
    kv.allocate("a", 2)
    kv.allocate("b", 1)
    kv.allocate("a", 1)
    assert (kv.table("a"), kv.table("b"), kv.table("c")) == ([1, 2, 4], [3], [])
    kv.release("a")
    assert kv.table("a") == []
    kv.allocate("c", 3)
    assert kv.table("c") == [4, 2, 1]  # the last block of a request goes first
    kv.validate()


def test_blocks_are_cleared_when_they_are_handed_out():
    cleared = []
    kv = PrefixCache(4, BLOCK, clear=lambda blocks: cleared.append(list(blocks)))
    kv.allocate("a", 2)
    kv.allocate("a", 0)  # nothing to clear
    kv.allocate("a", 1)
    kv.release("a")
    kv.allocate("b", 1)
    assert cleared == [[0, 1], [2], [3]]


def test_blocks_that_are_not_free_are_not_handed_out():
    kv = PrefixCache(2, BLOCK)
    with pytest.raises(AssertionError, match="kv-conserved"):
        kv.allocate("a", 3)
    assert kv.table("a") == []
    kv.validate()


@pytest.mark.parametrize("corrupt", [lambda t, kv: t.pop(), lambda t, kv: t.append(3)])
def test_a_block_that_is_in_no_table_or_in_two_is_found(corrupt):
    kv = PrefixCache(4, BLOCK)
    kv.allocate("a", 2)
    corrupt(kv.table("a"), kv)
    with pytest.raises(AssertionError, match="kv-conserved: a block"):
        kv.validate()


# -- any sequence of operations

CACHES = {
    "whole stage": lambda: KvCache(12, BLOCK),
    "by layer": lambda: KvCache(12, BLOCK, end_layer=3),
    "paged": lambda: PrefixCache(12, BLOCK, first_block=2),
}
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["grow", "grow", "release", "drop", "clear"]),
        st.integers(0, 4),
        st.integers(0, 30),
        st.integers(0, 2),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", CACHES)
@settings(deadline=None)
@given(OPERATIONS)
def test_blocks_are_conserved(kind, operations):
    kv = CACHES[kind]()
    requests = [prompt(1, index) for index in range(5)]
    held = dict.fromkeys(requests, 0)
    for operation, index, tokens, entry in operations:
        request = requests[index]
        if operation == "grow":
            missing = kv.missing(request, tokens, entry)
            if missing <= kv.num_free:
                kv.allocate(request, missing)
                held[request] += missing
                assert kv.missing(request, tokens, entry) == 0
        elif operation == "release":
            assert kv.release(request) == (held[request] > 0)
            held[request] = 0
        elif operation == "drop":
            kv.drop_unless(lambda other, request=request: other is not request)
            held[request] = 0
        else:
            kv.clear()
            held = dict.fromkeys(requests, 0)
        kv.validate()
        assert {request: kv.held(request) for request in requests} == held
        assert kv.num_used == sum(held.values())
        assert {request for request in requests if held[request]} <= set(kv.latest())
    kv.clear()
    assert kv.num_free == kv.num_blocks
    kv.validate()


# -- nodes that keep no account


def test_what_requests_hold_on_the_layers_of_their_routes():
    going, starting = decode(30), prompt(10)
    going.route = Route([Stage(0, 0, 2), Stage(1, 2, 4)])
    starting.route = Route([Stage(1, 1, 4)])
    assert held_token_layers([going, starting, prompt(7)], 3) == [62, 62 + 30, 0]
