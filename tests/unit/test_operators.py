"""Operator tables: times at and between their points, and whole steps, reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import make_llm, make_machine_type

from helixsim.cluster import Nic
from helixsim.errors import ScenarioError
from helixsim.physics.engine import IDEAL_ENGINE
from helixsim.physics.operators import OperatorStepTimer
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.operators import (
    AllReduce,
    AttentionTable,
    ExpertTable,
    LayerTables,
    OperatorCurve,
    OperatorTables,
)
from helixsim.profiles.planning_curves import planning_curves
from helixsim.requests import Request
from helixsim.steps import Batch, Step

DENSE = OperatorCurve((1, 8, 16), (2.0, 2.0, 4.0))
ATTENTION = AttentionTable(
    chunk=(0, 10),
    chunk_context=(0, 100),
    decodes=(0, 2, 4),
    decode_context=(10, 20, 40),
    seconds=(
        *(0, 0, 0, 1, 2, 3, 2, 4, 6),  # no chunk
        *(0, 0, 0, 1, 2, 3, 2, 4, 6),
        *(5, 5, 5, 6, 7, 8, 7, 9, 11),  # a chunk of 10 at no context
        *(9, 9, 9, 10, 11, 12, 11, 13, 15),
    ),
)
EXPERTS = ExpertTable(4, 2, (1, 2), (2, 4), (1.0, 9.0, 1.0, 3.0))
TABLES = OperatorTables(
    kinds=(LayerTables(DENSE, ATTENTION),),
    embedding=OperatorCurve((1,), (0.5,)),
    final_norm=OperatorCurve((1, 11), (0.25, 1.25)),
    head=OperatorCurve((1, 2), (3.0, 5.0)),
    decode_skew=0.25,
)


def timer(tables=TABLES, layers=(0, 4)):
    profile = make_machine_type("m", 4).profiles["toy"]
    node = PlacedNode(
        index=0,
        name="a",
        machine_type="m",
        region="",
        nic=Nic(1e9, 1e9),
        disk_bytes_per_s=1e9,
        start_layer=layers[0],
        end_layer=layers[1],
        profile=replace(profile, operators=tables),
        capacity=profile.capacity(layers[1] - layers[0]),
    )
    return OperatorStepTimer(make_llm(4), node, IDEAL_ENGINE)


def decode(context):
    """A decode whose context is this, with its new token."""
    request = Request(0, 0.0, context - 1, 10, 9)
    request.is_prefill = False
    request.num_computed_tokens = context - 1
    request.num_new_tokens = 1
    return request


def chunk(tokens, context=0):
    request = Request(0, 0.0, tokens + context, 10, 9)
    request.num_computed_tokens = context
    request.num_new_tokens = tokens
    return request


def seconds_of(requests, timer):
    ends, _ = timer.time_step(Step([Batch.of(requests)], [0, 4]), 0.0)
    return ends[-1]


# -- curves and grids


def test_dense_times():
    assert DENSE(0) == DENSE(1) == DENSE(5) == 2.0
    assert DENSE(12) == 3.0
    # Beyond 16: the line from (8, 2) through (16, 4).
    assert DENSE(32) == 8.0


def test_a_stair_at_the_end_is_not_extrapolated():
    curve = OperatorCurve((1, 8, 15, 16), (1.0, 2.0, 4.0, 4.0))
    assert curve(24) == 6.0
    falling = OperatorCurve((1, 8, 16), (1.0, 4.0, 3.0))
    assert falling(100) == 3.0
    assert OperatorCurve((4,), (1.5,))(100) == 1.5


def test_attention_between_grid_points():
    assert ATTENTION(0, 0, 2, 20) == 2.0
    # 3 decodes: between (1, 2, 3) and (2, 4, 6), that is (1.5, 3, 4.5); at 15: 2.25.
    assert ATTENTION(0, 0, 3, 15) == 2.25
    # The same beside a chunk of 10: 7.25 at no context, 11.25 at 100; at 25: 8.25.
    assert ATTENTION(10, 25, 3, 15) == 8.25
    # Half the chunk: between 2.25 and 8.25.
    assert ATTENTION(5, 25, 3, 15) == 5.25


def test_attention_beyond_the_grid():
    assert ATTENTION(0, 0, 2, 5) == 1.0
    assert ATTENTION(0, 0, 2, 60) == 4.0
    assert ATTENTION(0, 0, 6, 20) == 6.0
    assert ATTENTION(20, 0, 0, 0) == 10.0
    falling = replace(ATTENTION, seconds=(0, 0, 0, 1, 3, 2, *ATTENTION.seconds[6:]))
    assert falling(0, 0, 2, 60) == 2.0


def test_expected_distinct_experts():
    assert EXPERTS.distinct_experts(1) == 2.0
    assert EXPERTS.distinct_experts(2) == 3.0
    assert EXPERTS.distinct_experts(3) == 3.5
    assert EXPERTS(2) == 2.0
    many = ExpertTable(128, 8, (1,), (8,), (1.0,))
    assert many.distinct_experts(1) == pytest.approx(8)
    assert many.distinct_experts(64) == pytest.approx(128 * (1 - (15 / 16) ** 64))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: OperatorCurve((), ()), "tokens"),
        (lambda: OperatorCurve((2, 2), (1.0, 1.0)), "tokens[1]"),
        (lambda: OperatorCurve((1, 2), (1.0, 0.0)), "seconds[1]"),
        (lambda: OperatorCurve((1, 2), (1.0,)), None),
        (lambda: replace(ATTENTION, chunk=(1, 10)), "chunk[0]"),
        (lambda: replace(ATTENTION, decodes=(0, 4, 2)), "decodes[2]"),
        (lambda: replace(ATTENTION, seconds=ATTENTION.seconds[:-1]), "seconds"),
        (lambda: replace(ATTENTION, seconds=(0, 0, 0, 0, *ATTENTION.seconds[4:])), "seconds[3]"),
        (
            lambda: replace(ATTENTION, seconds=(*ATTENTION.seconds[:-1], float("inf"))),
            "seconds[35]",
        ),
        (lambda: replace(EXPERTS, experts_per_token=5), "experts_per_token"),
        (lambda: replace(TABLES, tensor_parallel=2), "all_reduce"),
        (lambda: replace(TABLES, decode_skew=-0.1), "decode_skew"),
    ],
)
def test_invalid_tables(make, where):
    with pytest.raises(ScenarioError) as error:
        make()
    assert error.value.where == where


# -- steps


def test_a_step_of_a_chunk_and_decodes():
    # 12 tokens: dense 3.0. Attention of the chunk at context 50 beside 2 decodes of 15 on average:
    # between (6.5 at no context) and (10.5 at 100): 8.5. Skew: t(20) - t(15) = 0.5, a quarter.
    # Once: embedding 0.5, norm 1.35, head 3 + 2 x (3 - 1) (extrapolated at half: 1) = 7.
    layer = 3.0 + 8.5 + 0.125
    head = TABLES.head(3)
    assert head == 7.0
    requests = [decode(10), chunk(10, 50), decode(20)]
    assert seconds_of(requests, timer()) == pytest.approx(4 * layer + 0.5 + 1.35 + head)


def test_further_chunks_are_added_alone():
    one = timer().layer_s(Batch.of([chunk(10), decode(20), decode(20)]))
    both = timer().layer_s(Batch.of([chunk(10), decode(20), decode(20), chunk(4, 50)]))
    # The second: 0.4 x 7.
    assert both - one == pytest.approx(2.8 + DENSE(16) - DENSE(12))


def test_a_step_of_decodes():
    # 3 decodes with a mean context of 20: (1.5, 3, 4.5); t(mean) 3, t(longest 30) 3.75.
    expected = 4 * (2.0 + 3.0 + 0.25 * 0.75) + 0.5 + 0.45 + 7.0
    assert timer().decode_step_s(3, 60, 30) == pytest.approx(expected)


def test_decodes_in_steps_take_the_same_to_the_last_bit():
    known = timer()
    for contexts in ([7], [11, 39], [33, 34, 41], [10, 500, 3, 8, 77, 1234]):
        again = known.decode_step_s(len(contexts), sum(contexts), max(contexts))
        assert seconds_of([decode(context) for context in contexts], known) == again
        fresh = timer().decode_step_s(len(contexts), sum(contexts), max(contexts))
        assert fresh == again
        batch = Batch.of([decode(context) for context in contexts])
        whole = 4 * known.layer_s(batch) + 0.5 + TABLES.last_s(len(contexts), len(contexts))
        assert again == pytest.approx(whole)


def test_the_gap_between_two_steps_comes_once_a_step():
    with_gap = timer(replace(TABLES, step_gap_s=0.5))
    for requests in ([decode(5), decode(9)], [chunk(4), decode(9)], [chunk(4)]):
        assert seconds_of(requests, with_gap) - seconds_of(requests, timer()) == pytest.approx(0.5)
    inside = {"layers": (1, 3)}
    assert seconds_of([decode(5)], timer(replace(TABLES, step_gap_s=0.5), **inside)) - seconds_of(
        [decode(5)], timer(**inside)
    ) == pytest.approx(0.5)


def test_only_the_ends_have_embedding_and_head():
    requests = [decode(10), decode(10)]
    layers = 2 * (2.0 + 1.0)
    assert seconds_of(requests, timer(layers=(0, 2))) == pytest.approx(layers + 0.5)
    assert seconds_of(requests, timer(layers=(1, 3))) == pytest.approx(layers)
    assert seconds_of(requests, timer(layers=(2, 4))) == pytest.approx(layers + 0.35 + 5.0)


def test_all_reduces_and_experts():
    # 2 tokens of 8 bytes: each all-reduce 1 + 2 x 3/4 x 16 / 8 = 4 s.
    tables = replace(
        TABLES,
        tensor_parallel=4,
        all_reduce=AllReduce(1.0, 8.0),
        kinds=(LayerTables(DENSE, ATTENTION, EXPERTS),),
    )
    requests = [decode(10), decode(10)]
    more = timer(tables).layer_s(Batch.of(requests)) - timer().layer_s(Batch.of(requests))
    assert more == pytest.approx(2 * 4 + 2.0)


def test_passes_and_the_start_of_the_last_layer():
    step = Step([Batch.of([chunk(10)]), Batch.of([]), Batch.of([decode(10)])], [0, 4])
    known = timer()
    ends, last = known.time_step(step, 100.0)
    first_s = 4 * (DENSE(10) + 5.0) + 0.5 + TABLES.last_s(10, 1)
    second_s = known.decode_step_s(1, 10, 10)
    assert ends == pytest.approx([100 + first_s, 100 + first_s, 100 + first_s + second_s])
    assert last == pytest.approx(ends[-1] - TABLES.last_s(1, 1) - 2.5)
    assert known.poll_s == 0


def test_requests_that_enter_in_the_middle():
    early, late = decode(10), decode(10)
    step = Step([Batch.of([early, late])], [0, 3, 4], entry_layers={late: 3})
    ends, last = timer().time_step(step, 0.0)
    # 3 layers with one decode (2 + 0.5), one layer with both (2 + 1); the head for both.
    tail = 0.35 + 5.0
    assert ends == pytest.approx([3 * 2.5 + 3.0 + 0.5 + tail])
    assert last == pytest.approx(ends[-1] - 3.0 - tail)


# -- planning


def test_planning_curves():
    llm = make_llm(4)
    prefill, decodes = planning_curves(TABLES, llm)
    once = (0.5 + 1.15 + 3.0) / 4
    assert prefill(10) == pytest.approx(2.5 + 5.0 + once)
    assert prefill(0) == prefill(1)
    # Attention of two decodes at 1,000 tokens: 3 + 960 x 1/20 = 51.
    assert decodes(2) == pytest.approx(2.0 + 51.0 + (0.5 + 0.35 + 5.0) / 4)
    # Beyond the last point: as the tables.
    assert prefill(64) == pytest.approx(DENSE(64) + 32.0 + (0.5 + 6.55 + 3.0) / 4)


def test_layers_of_two_kinds_count_by_their_number():
    # The layers 0 and 1 take twice as long as the layers 2 and 3, in everything.
    twice = LayerTables(
        replace(DENSE, seconds=tuple(2 * s for s in DENSE.seconds)),
        replace(ATTENTION, seconds=tuple(2 * s for s in ATTENTION.seconds)),
    )
    tables = replace(
        TABLES, kinds=(twice, TABLES.kinds[0]), kind_of_layer=(0, 0, 1, 1), decode_skew=0.25
    )
    requests = [decode(5), decode(9)]
    plain = seconds_of(requests, timer(layers=(1, 3))) / 2  # of one layer; neither end is here
    assert seconds_of(requests, timer(tables, layers=(1, 3))) == pytest.approx(3 * plain)
    first = seconds_of(requests, timer(layers=(0, 1))) - plain
    assert seconds_of(requests, timer(tables, layers=(0, 2))) == pytest.approx(first + 4 * plain)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"kinds": ()}, "kinds"),
        ({"kinds": TABLES.kinds * 2}, "kind_of_layer"),
        ({"kind_of_layer": (0, 1)}, "kind_of_layer[1]"),
    ],
)
def test_invalid_kinds_of_layers(changes, where):
    with pytest.raises(ScenarioError) as error:
        replace(TABLES, **changes)
    assert error.value.where == where
