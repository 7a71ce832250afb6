"""What every node scheduler promises; a registered one is tested by being there."""

from __future__ import annotations

from random import Random

import pytest
from builders import capacity, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.physics.engine import EngineCosts
from helixsim.steps import Batch

START, END, ENTRIES = 2, 6, (4,)
LIMITS = capacity(max_prompts=3, max_prompt_tokens=60, max_decode_tokens=4, max_decode_context=200)
NUM_BLOCKS = 400


def go_on(request):
    """Let a request stand in its next pass, as the coordinator does."""
    request.num_computed_tokens += request.num_new_tokens
    request.num_new_tokens, request.is_prefill = 1, False
    request.num_output_tokens += 1


class Node:
    """A scheduler, and requests that come, run and go; it checks all that happens.

    Attributes
    ----------
    inside
        Requests that have entered and have not left.
    held
        Requests that may hold KV blocks: they have entered, in this pass or in one before.
    left, taken_out
        Requests that went through the node, and those that were preempted or have failed.
    """

    def __init__(self, name, *, with_kv=None, batching="separate", num_blocks=NUM_BLOCKS):
        factory = NODE_SCHEDULERS.get(name)
        with_kv = factory.counts_kv if with_kv is None else with_kv
        kv = KvCache(num_blocks, 16, END) if with_kv else None
        engine = EngineCosts(
            batching=batching,
            max_num_batched_tokens=70,
            max_num_seqs=LIMITS.max_decode_tokens,
        )
        self.max_num_batched_tokens = engine.max_num_batched_tokens
        self.scheduler = factory(
            NodeSchedulerInputs(
                name="node",
                start_layer=START,
                end_layer=END,
                entry_layers=ENTRIES,
                limits=LIMITS,
                kv=kv,
                engine=engine,
            )
        )
        self.kv = kv
        self.inside, self.held, self.entry = {}, {}, {}
        self.left, self.taken_out = [], []

    def check(self):
        scheduler = self.scheduler
        scheduler.validate()
        step = scheduler.running
        running = [] if step is None else [r for batch in step.passes for r in batch.requests]
        assert set(running) <= set(self.inside)
        assert scheduler.num_waiting + len(running) == len(self.inside)
        assert 0 <= scheduler.queue_length <= scheduler.num_waiting
        assert (scheduler.waiting_tokens > 0) == (scheduler.num_waiting > 0)
        if self.kv is not None:
            assert set(self.kv.latest()) <= set(self.held)

    def enter(self, requests, layer=START):
        for request in requests:
            assert request not in self.inside
            self.inside[request] = self.held[request] = None
            self.entry.setdefault(request, layer)
        self.scheduler.enter(layer, Batch.of(list(requests)))
        self.check()

    def schedule(self):
        """Begin a step; requests that it reports are out."""
        step = self.scheduler.schedule()
        if step is None:
            assert self.scheduler.running is None
            self.check()
            return None
        out = [*step.preempted, *(request for request, reason in step.failed if reason)]
        assert len(set(out)) == len(out) == len(step.preempted) + len(step.failed)
        for request in out:
            assert request in self.held
            self.inside.pop(request, None)
            del self.held[request]
            self.taken_out.append(request)
            if self.kv is not None:
                assert self.kv.held(request) == 0
        self.check()
        if step.num_requests:
            assert self.scheduler.running is step
            self.check_limits(step)
            return step
        assert out
        return None

    def check_limits(self, step):
        assert START <= step.start_layer < step.end_layer <= END
        decodes = [r for batch in step.passes for r in batch.requests if not r.is_prefill]
        assert len(decodes) <= LIMITS.max_decode_tokens
        for batch in step.passes:
            again = Batch.of(batch.requests)
            assert (batch.num_prompts, batch.prompt_tokens) == (
                again.num_prompts,
                again.prompt_tokens,
            )
            assert (
                batch.prompt_tokens <= max(LIMITS.max_prompt_tokens, self.max_num_batched_tokens)
                or batch.num_prompts == 1
            )
        if self.kv is None:
            return
        for batch in step.passes:
            for request in batch.requests:
                tokens = request.num_computed_tokens + request.num_new_tokens
                assert self.kv.missing(request, tokens, self.entry[request]) == 0

    def finish(self, step):
        """End the passes of a step; the requests that have left."""
        left = []
        for number in range(len(step.passes)):
            batch = self.scheduler.finish_pass(step, number)
            for request in [] if batch is None else batch.requests:
                del self.inside[request]  # it leaves once
                left.append(request)
            if number < len(step.passes) - 1:
                self.check()
        self.left += left
        return left

    def decoding(self, tokens, index, layer=START):
        """A request that is through with its prefill here and has come back with its decode."""
        request = prompt(tokens, index, output=4)
        self.enter([request], layer)
        assert self.finish(self.schedule()) in ([], [request])
        if not self.left:
            self.run_all()
        self.left.clear()
        go_on(request)
        return request

    def run_all(self):
        """Run steps until there is nothing to run."""
        for _ in range(10_000):
            step = self.schedule()
            if step is not None:
                self.finish(step)
            elif not self.inside:
                return
            else:
                assert self.kv is not None, "requests wait that nothing keeps from running"
                # Others hold the blocks; they end.
                idle = [request for request in self.held if request not in self.inside]
                assert idle or self.taken_out
                for request in idle:
                    self.release(request)
        raise AssertionError("it goes on for ever")

    def release(self, request):
        had = self.kv is not None and self.kv.held(request) > 0
        assert self.scheduler.release(request) == had
        self.held.pop(request, None)
        self.check()

    def drop(self, requests):
        gone = set(requests)
        self.scheduler.drop_unless(lambda request: request not in gone)
        for request in gone:
            self.inside.pop(request, None)
            self.held.pop(request, None)
        self.check()


KINDS = {}
for base in NODE_SCHEDULERS.names():
    KINDS[base] = {}
    if NODE_SCHEDULERS.get(base).counts_kv:
        KINDS[f"{base}, mixed"] = {"batching": "mixed"}
    else:
        KINDS[f"{base}, with KV blocks"] = {"with_kv": True}


def make(kind, **settings):
    return Node(kind.split(",")[0], **(KINDS[kind] | settings))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_without_requests_there_is_no_step(kind):
    node = make(kind)
    assert node.schedule() is None
    assert node.scheduler.num_waiting == node.scheduler.queue_length == 0


def test_requests_go_through_all_layers_and_leave_once(kind):
    node = make(kind)
    requests = [prompt(20, 0), prompt(30, 1), node.decoding(40, 2), node.decoding(50, 3)]
    node.enter(requests[:2])
    node.enter(requests[2:])
    assert node.scheduler.num_waiting == 4
    assert node.scheduler.waiting_tokens == 52
    node.run_all()
    assert sorted(request.index for request in node.left) == [0, 1, 2, 3]
    assert node.taken_out == []


def test_requests_that_enter_in_the_middle_leave_once(kind):
    node = make(kind)
    late = node.decoding(40, 2, layer=ENTRIES[0])
    node.enter([prompt(20, 0)])
    node.enter([prompt(30, 1), late], layer=ENTRIES[0])
    node.run_all()
    assert sorted(request.index for request in node.left) == [0, 1, 2]


def test_requests_that_are_dropped_never_leave(kind):
    node = make(kind)
    waits, runs, kept = prompt(20, 0), prompt(30, 1), prompt(10, 2)
    node.enter([runs, kept])
    step = node.schedule()
    node.enter([waits])
    node.drop([waits, runs])
    node.finish(step)
    node.run_all()
    assert node.left == [kept]
    node.release(kept)
    assert node.kv is None or node.kv.num_free == NUM_BLOCKS


def test_a_step_whose_requests_are_all_dropped_ends_empty(kind):
    node = make(kind)
    requests = [prompt(20, 0), node.decoding(30, 1)]
    node.enter(requests)
    step = node.schedule()
    node.drop(requests)
    assert node.finish(step) == []
    assert node.schedule() is None


def test_a_node_that_failed_forgets_all(kind):
    node = make(kind)
    node.enter([prompt(20, 0), node.decoding(30, 1)])
    node.schedule()
    node.enter([prompt(20, 2)])
    node.scheduler.reset()
    node.inside.clear()
    node.held.clear()
    node.check()
    assert node.schedule() is None
    assert node.kv is None or node.kv.num_free == NUM_BLOCKS
    node.enter([prompt(20, 3)])  # it works again
    node.run_all()
    assert [request.index for request in node.left] == [3]


def test_tokens_that_came_are_copied_in_once(kind):
    """Where hidden states come in, each token's are part of one step."""
    node = make(kind)
    received = 0
    for index in range(6):
        node.enter([prompt(20, index)])
        step = node.schedule()
        received += step.received_tokens
        node.finish(step)
    while (step := node.schedule()) is not None:
        received += step.received_tokens
        node.finish(step)
    assert received == 6 * 20


def test_no_decode_runs_in_the_place_of_one_that_was_preempted(kind):
    """More decodes wait than a step takes, and one of the first is preempted."""
    node = make(kind, num_blocks=24)
    if node.kv is None:
        pytest.skip("it counts no KV blocks")
    requests = [node.decoding(16, index) for index in range(6)][::-1]  # 4 blocks each, all full
    node.enter(requests)
    fates = dict.fromkeys(requests)
    while node.inside:
        step = node.schedule()
        note_taken_out(node, fates)
        if step is not None:
            send_on(node, fates, node.finish(step))
    assert set(fates.values()) <= {"ended", "taken out"}
    assert "ended" in fates.values()
    assert node.kv.num_free == 24


def test_a_request_that_never_fits_is_reported_and_others_go_on(kind):
    node = make(kind, num_blocks=4)
    if node.kv is None:
        pytest.skip("it counts no KV blocks")
    node.enter([prompt(50, 0), prompt(10, 1)])  # 16 blocks on 4 layers, and 4
    node.run_all()
    assert [request.index for request in node.taken_out] == [0]
    assert [request.index for request in node.left] == [1]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(sorted(KINDS)))
def test_random_arrivals(seed, kind):
    """Requests come, run all their passes, are dropped, end; none is lost or runs twice."""
    rng = Random(seed)
    node = make(kind, num_blocks=40)
    fates = {}
    step = None
    for index in range(40):
        action = rng.random()
        if action < 0.45:
            layer = rng.choice((START, *ENTRIES))
            requests = [
                prompt(rng.randint(1, 55), 10 * index + place, output=4)
                for place in range(rng.randint(1, 3))
            ]
            fates.update(dict.fromkeys(requests))
            node.enter(requests, layer)
        elif action < 0.55 and node.held:
            gone = rng.sample(list(node.held), min(len(node.held), rng.randint(1, 2)))
            node.drop(gone)
            note(fates, gone, "dropped")
        elif step is None:
            step = node.schedule()
            note_taken_out(node, fates)
        else:
            send_on(node, fates, node.finish(step))
            step = None
    for _ in range(5000):
        if step is None:
            step = node.schedule()
            note_taken_out(node, fates)
        if step is None:
            break
        send_on(node, fates, node.finish(step))
        step = None
    node.check()
    # What still waits, waits for blocks that others hold, which left the node for good above.
    assert not node.inside
    assert None not in fates.values()
    assert node.kv is None or (node.kv.num_free, list(node.kv.latest())) == (40, [])


def note(fates, requests, fate):
    for request in requests:
        assert fates[request] is None, "a request ends once"
        fates[request] = fate


def note_taken_out(node, fates):
    note(fates, node.taken_out, "taken out")
    node.taken_out.clear()


def send_on(node, fates, left):
    """Send requests that left on their next pass, or let them end."""
    again = {}
    for request in left:
        assert fates[request] is None
        if request.num_output_tokens == request.num_decodes:
            node.release(request)
            note(fates, [request], "ended")
            continue
        go_on(request)
        again.setdefault(node.entry[request], []).append(request)
    for layer, requests in again.items():
        node.enter(requests, layer)
