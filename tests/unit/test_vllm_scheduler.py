"""The node scheduler of an engine of today, step by step and by hand."""

from __future__ import annotations

from builders import capacity

from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers.scheduler import RETURNS, NodeSchedulerInputs
from helixsim.control.node_schedulers.vllm import VllmScheduler
from helixsim.physics.engine import EngineCosts
from helixsim.requests import Request, Route, SharedPrefix, Stage
from helixsim.steps import Batch

LAYERS = 4


def scheduler(num_blocks=100, *, end_layer=LAYERS, entries=(), **engine):
    engine = {"max_num_batched_tokens": 100, "async_scheduling": False} | engine
    return VllmScheduler(
        NodeSchedulerInputs(
            name="n0",
            start_layer=0,
            end_layer=end_layer,
            entry_layers=entries,
            limits=capacity(),
            kv=KvCache(num_blocks * end_layer, 16, end_layer),
            engine=EngineCosts(**engine),
            num_llm_layers=LAYERS,
        )
    )


def request(index, prompt, output, *, stages=1, first=0):
    made = Request(index, float(index), prompt, output, num_decodes=output - 1)
    made.route = Route([Stage(first + place, place, place + 1) for place in range(stages)])
    return made


def enter(node, *requests, layer=0):
    node.enter(layer, Batch.of(list(requests)))


def step_of(node):
    """Compose a step: (request, tokens computed before, new tokens) of each request."""
    step = node.schedule()
    node.validate()
    if step is None:
        return None
    return [(r.index, r.num_computed_tokens, r.num_new_tokens) for r in step.passes[0].requests]


def finish(node):
    """End the step that runs; the requests that have a token, or leave."""
    step = node.running
    batch = node.finish_pass(step, 0)
    node.validate()
    return [] if batch is None else [r.index for r in batch.requests]


def run(node):
    """Run to the end; all steps."""
    steps = []
    while (composed := step_of(node)) is not None:
        steps.append(composed)
        if node.running is not None:
            finish(node)
    return steps


def test_a_request_alone_loops_until_its_answer_is_complete():
    node = scheduler()
    enter(node, request(0, 20, 3))
    assert run(node) == [[(0, 0, 20)], [(0, 20, 1)], [(0, 21, 1)]]
    assert node.kv.num_free == 100


def test_prefills_are_split_by_the_token_budget_and_decodes_go_first():
    node = scheduler()
    enter(node, request(0, 30, 3), request(1, 130, 2))
    # 100 tokens a step: 30 + 70; then a decode and the other 60; then decodes of both.
    assert run(node) == [
        [(0, 0, 30), (1, 0, 70)],
        [(0, 30, 1), (1, 70, 60)],
        [(0, 31, 1), (1, 130, 1)],
    ]


def test_no_more_requests_run_than_max_num_seqs():
    node = scheduler(max_num_seqs=2)
    enter(node, *(request(index, 10, 2) for index in range(3)))
    assert run(node) == [
        [(0, 0, 10), (1, 0, 10)],
        [(0, 10, 1), (1, 10, 1)],
        [(2, 0, 10)],
        [(2, 10, 1)],
    ]


def test_a_request_that_ends_keeps_its_place_in_a_step_that_is_composed_before():
    node = scheduler(max_num_seqs=2, async_scheduling=True)
    enter(node, request(0, 10, 4), request(1, 10, 1), request(2, 10, 1))
    assert run(node) == [
        [(0, 0, 10), (1, 0, 10)],
        [(0, 10, 1)],
        [(0, 11, 1), (2, 0, 10)],
        [(0, 12, 1)],
    ]


def test_the_whole_prompt_must_fit_before_a_request_is_admitted():
    """Ten blocks; the first takes 5 of them, the second needs 6, though a chunk would fit."""
    node = scheduler(10, max_num_batched_tokens=80)
    enter(node, request(0, 80, 2), request(1, 96, 1), request(2, 16, 1))
    assert step_of(node) == [(0, 0, 80)]
    finish(node)
    assert step_of(node) == [(0, 80, 1)]  # and not request 2: requests are admitted in order
    finish(node)
    assert step_of(node) == [(1, 0, 80)]


def test_the_request_that_came_last_is_preempted_and_computed_again():
    """Four blocks: two requests of 31 tokens fill them with their 32nd; the 33rd has no block."""
    node = scheduler(4, enable_prefix_caching=False)
    first, last = request(0, 31, 6), request(1, 31, 6)
    enter(node, first, last)
    assert step_of(node) == [(0, 0, 31), (1, 0, 31)]
    finish(node)
    assert step_of(node) == [(0, 31, 1), (1, 31, 1)]
    finish(node)
    # Nothing is admitted in a step that preempted, nor as long as the 33 tokens find no room.
    for tokens in (32, 33, 34, 35):
        assert step_of(node) == [(0, tokens, 1)]
        finish(node)
    assert (last.num_preemptions, last.num_generated_tokens) == (1, 2)
    assert step_of(node) == [(1, 0, 33)]  # all that is known of it, and no token twice
    finish(node)
    assert last.num_generated_tokens == 3


def test_the_prefix_cache_helps_a_request_that_was_preempted():
    node = scheduler(4)
    enter(node, request(0, 31, 6), request(1, 31, 6))
    steps = run(node)
    # Both its blocks are known. The first request takes a third block, the last one first.
    assert steps[6] == [(1, 16, 17)]


def test_a_prompt_that_begins_like_another_finds_its_blocks():
    node = scheduler()
    prefix = SharedPrefix(("system",), 512)
    prompts = [request(index, 600, 1) for index in range(2)]
    for each in prompts:
        each.prefix = prefix
    enter(node, prompts[0])
    run(node)
    enter(node, prompts[1])
    assert step_of(node) == [(1, 512, 88)]  # 32 blocks of 16
    assert prompts[1].num_cached_tokens == 512
    assert node.kv.num_hit_tokens == 512
    assert node.kv.num_asked_tokens == 1200


def test_a_prompt_that_is_known_entirely_computes_its_last_block_again():
    node = scheduler()
    for index in range(2):
        each = request(index, 32, 1)
        each.prefix = SharedPrefix(("a", "b"), 16)
        enter(node, each)
        steps = run(node)
    assert steps == [[(1, 16, 16)]]


def test_the_least_recently_used_blocks_are_needed_first():
    node = scheduler(4)
    for index, key in enumerate("abca"):
        each = request(index, 32, 1)
        each.prefix = SharedPrefix((key, key + "2"), 16)
        enter(node, each)
        run(node)
    # a and b fill four blocks; c takes both of a, which came first.
    assert node.kv.num_hit_tokens == 0
    each = request(9, 32, 1)
    each.prefix = SharedPrefix(("c", "c2"), 16)
    enter(node, each)
    assert run(node) == [[(9, 16, 16)]]  # the fourth one took the blocks of b


def test_a_step_is_composed_from_what_was_there_when_the_one_before_began():
    node = scheduler(async_scheduling=True)
    enter(node, request(0, 10, 5))
    assert step_of(node) == [(0, 0, 10)]  # idle, it begins at once
    enter(node, request(1, 10, 2))
    finish(node)
    assert step_of(node) == [(0, 10, 1)]
    finish(node)
    assert step_of(node) == [(0, 11, 1), (1, 0, 10)]


def test_priorities_go_before_the_order_of_arrival():
    node = scheduler(max_num_seqs=1, scheduling="priority")
    requests = [request(index, 10, 1) for index in range(3)]
    requests[2].priority = -1
    enter(node, *requests)
    assert [step[0][0] for step in run(node)] == [2, 0, 1]


def test_a_request_that_can_never_fit_is_named():
    node = scheduler(4)
    enter(node, request(0, 60, 10), request(1, 60, 5))  # 69 and 64 tokens in 4 blocks
    step = node.schedule()
    assert [(r.index, reason) for r, reason in step.failed] == [
        (0, "n0 has too little KV cache for it")
    ]
    assert [r.index for r in step.passes[0].requests] == [1]


def test_as_many_groups_are_in_flight_as_a_route_has_stages():
    node = scheduler(end_layer=2)
    requests = [request(index, 10, 3, stages=2) for index in range(4)]
    enter(node, requests[0])
    assert step_of(node) == [(0, 0, 10)]
    assert finish(node) == [0]  # on to the next stage
    enter(node, requests[1])
    assert step_of(node) == [(1, 0, 10)]
    assert finish(node) == [1]
    enter(node, requests[2])
    assert step_of(node) is None  # a third group would have to wait at each stage
    enter(node, requests[0], layer=RETURNS)
    assert requests[0].num_generated_tokens == 1
    assert step_of(node) == [(0, 10, 1), (2, 0, 10)]


def test_the_last_pass_does_not_come_back():
    node = scheduler(end_layer=2)
    enter(node, request(0, 10, 1, stages=2))
    assert step_of(node) == [(0, 0, 10)]
    assert finish(node) == [0]
    assert step_of(node) is None
    assert node.kv.num_free == 100
    assert node.queue_length == 0


def test_an_unknown_request_that_comes_back_is_ignored():
    node = scheduler(end_layer=2)
    enter(node, request(0, 10, 5, stages=2), layer=RETURNS)
    assert step_of(node) is None
    assert node.num_waiting == 0


def test_routes_that_began_elsewhere_lead_through():
    node = scheduler(entries=(2,))
    own, through = request(0, 10, 2), request(1, 12, 2, stages=2, first=5)
    enter(node, own)
    enter(node, through, layer=2)
    step = node.schedule()
    assert [r.index for r in step.passes[0].requests] == [1, 0]
    assert step.entry_layers == {through: 2}
    assert finish(node) == [0, 1]
    assert (own.num_generated_tokens, through.num_generated_tokens) == (1, 0)


def test_a_pass_takes_the_blocks_of_a_request_that_has_just_ended():
    """With async scheduling they are not back yet when the next step is composed."""
    node = scheduler(4, entries=(2,), async_scheduling=True)
    through = request(2, 16, 5, stages=2, first=5)
    enter(node, request(0, 10, 9), request(1, 32, 1))
    enter(node, through, layer=2)
    assert step_of(node) == [(2, 0, 16), (0, 0, 10), (1, 0, 32)]
    assert finish(node) == [0, 1, 2]
    through.num_computed_tokens, through.num_new_tokens, through.num_generated_tokens = 16, 1, 1
    through.is_prefill = False
    enter(node, through, layer=2)
    assert step_of(node) == [(0, 10, 1), (2, 16, 1)]
    assert node.kv.num_free == 1


def test_a_step_that_preempted_is_not_repeated_while_requests_wait():
    """By priority, another one than the preempted request may be next, and need less room."""
    node = scheduler(7, scheduling="priority", enable_prefix_caching=False)
    first, last, short = request(0, 31, 50), request(1, 47, 50), request(2, 16, 5)
    last.priority, short.priority = 2, 1
    enter(node, first, last)
    assert step_of(node) == [(0, 0, 31), (1, 0, 47)]
    finish(node)
    step_of(node)  # 32 and 48 tokens, in 2 and 3 blocks
    finish(node)
    step_of(node)  # 3 and 4 blocks: no more are free
    enter(node, short)
    for _ in range(15):
        finish(node)
        step_of(node)
    assert node.kv.num_free == 0
    finish(node)
    assert step_of(node) == [(0, 48, 1)]
    assert last.num_preemptions == 1
    assert node.num_repeats(node.running) == 0
    finish(node)
    assert step_of(node) == [(0, 49, 1), (2, 0, 16)]


def test_released_and_dropped_requests_leave_no_blocks():
    node = scheduler()
    requests = [request(index, 20, 5) for index in range(3)]
    enter(node, *requests)
    step_of(node)
    assert node.release(requests[0])
    assert not node.release(requests[0])
    node.drop_unless(lambda each: each is not requests[1])
    node.validate()
    assert finish(node) == [2]
    run(node)
    assert node.kv.num_free == 100
