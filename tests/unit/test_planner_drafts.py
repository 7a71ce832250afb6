"""Drafts of placements by groups, stages and layers, and how they are improved."""

from __future__ import annotations

import pytest

from helixsim.planner.simulated.drafts import Block, Draft, StagedGroup, improved


def block(nodes, stages, width, most=9):
    return Block((StagedGroup(tuple(nodes), stages, most),), width)


def test_nodes_are_dealt_to_equal_stages():
    """Four nodes in two stages over six layers: three layers each, two nodes side by side."""
    draft = Draft(((block([0, 1, 2, 3], 2, 6), block([4], 1, 2)),))
    assert draft.ranges() == {0: (0, 3), 1: (3, 6), 2: (0, 3), 3: (3, 6), 4: (6, 8)}


def test_layers_that_do_not_fit_give_no_placement():
    assert Draft(((block([0], 1, 10),),)).ranges() == {}
    assert Draft(((block([0, 1, 2], 3, 2),),)).ranges() == {}


def test_a_block_without_layers_leaves_its_nodes_out():
    assert Draft(((block([0], 1, 4), block([1], 1, 0)),)).ranges() == {0: (0, 4)}


def short_stages(ranges, least):
    """Highest where the sum of the squares of the stages' layers is least."""
    return 1.0 / sum((end - start) ** 2 for start, end in set(ranges.values()))


def test_stages_and_layers_are_found():
    """Twelve layers, two nodes and four: six stages of two layers, 6 x 4 = 24."""
    draft = Draft(((block([0, 1], 1, 8), block([2, 3, 4, 5], 2, 4)),))
    better, count = improved(draft, short_stages, 1000)
    assert short_stages(better.ranges(), 0.0) == 1 / 24
    assert sorted(better.ranges().values()) == [(n, n + 2) for n in range(0, 12, 2)]
    assert 0 < count <= 1000


def test_layers_move_twice_where_each_move_alone_loses():
    """Only exactly 2, 4 and 6 layers are good: the first of two moves must cross a worse draft."""

    def score(ranges, least):
        widths = sorted(end - start for start, end in ranges.values())
        return 2.0 if widths == [2, 4, 6] else 1.0 if widths == [3, 3, 6] else 0.5

    draft = Draft(((block([0], 1, 6), block([1], 1, 3), block([2], 1, 3)),))
    better, _ = improved(draft, score, 5000)
    assert score(better.ranges(), 0.0) == 2.0

    def harder(ranges, least):
        widths = [end - start for _, (start, end) in sorted(ranges.items())]
        return 2.0 if sorted(widths) == [2, 5, 5] else 1.0 if widths == [6, 3, 3] else 0.5

    better, _ = improved(draft, harder, 5000)
    assert harder(better.ranges(), 0.0) == 2.0


def test_the_number_of_scores_is_kept():
    draft = Draft(((block([0, 1], 1, 8), block([2, 3, 4, 5], 2, 4)),))
    assert improved(draft, short_stages, 3)[1] == 3
    assert improved(draft, short_stages, 0)[0] == draft
    assert improved(draft, short_stages, 1000, lambda: True)[0] == draft


def test_long_climbs_end():
    """Of 24 full blocks, no change fits: the climb gives up long before millions of them."""
    draft = Draft((tuple(block([n], 1, 9) for n in range(24)),))
    calls = []

    def score(ranges, least):
        calls.append(1)
        return 1.0

    better, count = improved(draft, score, 10**9)
    assert better == draft
    assert count == len(calls) - 1 < 1000


def test_long_pipelines_exchange_all_pairs():
    draft = Draft((tuple(block([n], 1, n + 1) for n in range(6)),))
    orders = list(draft.orders(24))
    assert len(orders) == 2 + 15
    assert any(each.pipelines[0][0] != draft.pipelines[0][0] for each in orders[2:])


@pytest.mark.parametrize("most", [1, 3, 24])
def test_orders_keep_all_blocks(most):
    draft = Draft(((block([0], 1, 2), block([1], 1, 3), block([2], 1, 4)),))
    orders = list(draft.orders(most))
    assert orders[0] == draft
    assert all(
        sorted(each.pipelines[0], key=repr) == sorted(draft.pipelines[0], key=repr)
        for each in orders
    )
    assert len(set(orders)) == min(6, most + 2)
