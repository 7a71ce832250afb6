"""Sets of machines in the order of their cost, against trying all."""

from __future__ import annotations

from itertools import islice, product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixsim.studies.sizing.machine_sets import CheapestSets, Kind, lacks

kinds = st.builds(
    lambda price, rate, layers, least, more: Kind(price, (rate, layers), least, least + more),
    st.integers(0, 6).map(lambda n: n / 2),
    st.integers(0, 5).map(float),
    st.integers(0, 4).map(float),
    st.integers(0, 1),
    st.integers(0, 4),
)


@given(
    st.lists(kinds, min_size=1, max_size=3),
    st.tuples(st.integers(0, 20).map(float), st.integers(0, 8).map(float)),
    st.integers(0, 1),
)
def test_all_sets_come_in_the_order_of_their_cost(kinds, needs, survive):
    search = CheapestSets(kinds, needs, survive)
    found = list(search)
    everything = product(*(range(kind.least, kind.most + 1) for kind in kinds))
    right = {counts for counts in everything if has_all(kinds, counts, needs, survive)}
    assert {counts for _, counts in found} == right
    assert len(found) == len(right)
    assert [cost for cost, _ in found] == sorted(cost for cost, _ in found)
    assert search.floor == inf


@given(st.lists(kinds, min_size=1, max_size=3), st.integers(0, 20).map(float), st.integers(1, 40))
def test_the_floor_holds_wherever_the_search_ends(kinds, need, steps):
    whole = [cost for cost, _ in CheapestSets(kinds, (need, 1.0))]
    search = CheapestSets(kinds, (need, 1.0), most_steps=steps)
    listed = len(list(search))
    assert all(cost >= search.floor - 1e-9 for cost in whole[listed:])


def has_all(kinds, counts, needs, survive):
    losses = [counts]
    if survive:
        losses += [
            tuple(n - (index == lost) for index, n in enumerate(counts))
            for lost in range(len(counts))
            if counts[lost]
        ]
    return all(
        sum(kind.amounts[r] * n for kind, n in zip(kinds, left, strict=True)) >= needs[r]
        for left in losses
        for r in range(2)
    )


def test_a_case_by_hand():
    # 10 requests/s: three of the large are 9 $, of the small ten at 1.2 $ are 12 $; two large and
    # two small, 8.4 $, are the cheapest.
    large, small = Kind(3.0, (4.0,)), Kind(1.2, (1.0,))
    (cost, best), second = islice(CheapestSets((large, small), (10.0,)), 2)
    assert best == (2, 2)
    assert cost == pytest.approx(8.4)
    assert second == (pytest.approx(9.0), (3, 0))


def test_with_one_machine_lost_the_rest_is_enough():
    large, small = Kind(3.0, (4.0,)), Kind(1.2, (1.0,))
    assert lacks((large, small), (2, 2), (10.0,), survive=1)
    _, best = next(iter(CheapestSets((large, small), (10.0,), survive=1)))
    assert best == (3, 2)  # 8 + 2 are left of them; 4 large cost 12 $, this 11.4 $


def test_what_cannot_be_had_has_no_set():
    search = CheapestSets((Kind(1.0, (1.0,), most=3),), (4.0,))
    assert list(search) == []
    assert search.floor == inf


def test_machines_of_which_no_limit_is_known():
    search = CheapestSets((Kind(2.0, (inf, 3.0)), Kind(1.0, (inf, 1.0))), (5.0, 4.0))
    assert next(iter(search)) == (pytest.approx(3.0), (1, 1))
