"""One node whose decodes loop, with requests made by hand, in the simulator and in a worker.

A node holds all layers, the first of them, or later ones; `kind` says which. What leaves it comes
back, for a first node, after a time that the test chooses.
"""

from __future__ import annotations

from array import array
from itertools import count
from math import inf

from builders import capacity, make_timer, make_topology
from node_bodies import MANY, node_scenario

from helixreal.engines.emulated import EmulatedEngine
from helixreal.net.messages import Answer, Stage
from helixreal.worker.looping_executor import (
    NO_TOKEN,
    FirstSequence,
    LaterSequence,
    LoopingExecutor,
)
from helixreal.worker.runner import TimedRunner
from helixreal.worker.sequences import ArrivingPass
from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.control.node_schedulers.scheduler import RETURNS
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, SerialLink
from helixsim.models.looping_node import LoopingNode
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request, Route
from helixsim.requests import Stage as RouteStage
from helixsim.steps import Batch

LAYERS = {"whole": (0, 4), "first": (0, 4), "later": (4, 8)}
ENTRIES = (6,)


class LoopingNodeUnderTest:
    """What both have in common: a scheduler, a log.

    Attributes
    ----------
    log
        (time, indices) of what leaves: tokens of a whole node, passes of others; and
        (time, "preempted" or "failed", index).
    when_departed
        Called with (time, indices) of what leaves a later node.
    back_after_s
        When what has left a first node comes back.
    """

    def __init__(self, kind, engine, num_blocks, num_requests=20):
        self.kind = kind
        layers = LAYERS[kind]
        self.scenario = node_scenario(layers, 8.0, {"kv_token_layers": 16 * 4 * num_blocks})
        self.placed = make_topology(self.scenario).nodes[0]
        self.engine_costs = engine
        self.log = []
        self.when_departed = lambda now, indices: None
        self.back_after_s = 3.0
        self.scheduler = NODE_SCHEDULERS.get("vllm")(
            NodeSchedulerInputs(
                name="node",
                start_layer=layers[0],
                end_layer=layers[1],
                entry_layers=ENTRIES if kind == "later" else (),
                limits=capacity(),
                kv=KvCache.by_layer(16 * 4 * num_blocks, layers[1]),
                engine=engine,
                num_llm_layers=4 if kind == "whole" else 8,
            )
        )

    def make_timer(self):
        return make_timer(self.scenario, physics="calibrated", engine=self.engine_costs)

    def note(self, now, indices):
        self.scheduler.validate()
        self.log.append((now, indices))
        self.when_departed(now, indices)


class SimulatedLoopingNode(LoopingNodeUnderTest):
    """The simulator's node."""

    def __init__(self, *args):
        super().__init__(*args)
        self.environment = ExactEnvironment()
        self.inbox = DeliveryQueue()
        self._gone = set()
        self.node = LoopingNode(
            self.environment,
            self.placed,
            self.scheduler,
            self.make_timer(),
            self.inbox,
            self,
            self if self.kind == "whole" else None,
            None,
        )
        self.node.repeats = False
        self.node.connect(self, num_sources=1)
        self._links = {
            layer: SerialLink(
                PlacedLink(0, 1, 0, inf, 0.0, layer, 2.0),
                inf,
                self.inbox,
                self.environment.next_number,
            )
            for layer in (LAYERS[self.kind][0], *ENTRIES, RETURNS)
        }

    # stream of tokens
    def send(self, requests, now, *, is_notable):
        self.note(now, [request.index for request in requests])

    # egress
    def depart(self, batch, now):
        back = [request for request in batch.requests if not request.is_last_pass]
        if self.kind == "first" and back:
            self._come(now + self.back_after_s, back, RETURNS)
        self.note(now, [request.index for request in batch.requests])

    def drop_unless(self, is_wanted):
        pass

    # reports
    def report_step(self, step):
        now = self.environment.now
        for kind, requests in (
            ("preempted", step.preempted),
            ("failed", [request for request, _ in step.failed]),
        ):
            for request in requests:
                self.log.append((now, kind, request.index))
                self._gone.add(request.index)
                self.node.drop_unless(lambda other, gone=request: other is not gone)

    def ask(self, at, index, prompt_tokens, num_decodes, priority=0):
        """Let a whole request come to a node that holds the first layer."""
        request = Request(index, at, prompt_tokens, num_decodes + 1, num_decodes)
        request.priority = priority
        request.route = Route([RouteStage(0, 0, 4)] * (1 if self.kind == "whole" else 2))
        self._come(at, [request], 0)
        return request

    def come(self, at, request, layer):
        """Let a pass come to a later node."""
        self._come(at, [request], layer)

    def _come(self, at, requests, layer):
        def arrive():
            wanted = [request for request in requests if request.index not in self._gone]
            if wanted:
                self._links[layer].send(Batch.of(wanted), at)

        ReusableEvent(self.environment, arrive).schedule(at, 0.0)

    def drop(self, at, *indices):
        def act():
            self._gone.update(indices)
            self.node.drop_unless(lambda request: request.index not in indices)

        ReusableEvent(self.environment, act).schedule(at, 0.0)

    def run(self, until=inf):
        self.environment.run_through(until)
        return self.log


class LoopingWorkerNode(LoopingNodeUnderTest):
    """A worker's executor, whose clock is moved from event to event."""

    def __init__(self, *args):
        super().__init__(*args)
        end = LAYERS[self.kind][1]
        num_layers = end + (self.kind != "whole")
        runner = TimedRunner(EmulatedEngine(MANY, end, num_layers, 8.0), self.make_timer())
        runner.slack_s = inf  # the clock below is never late
        self.executor = LoopingExecutor(self.scheduler, runner, self)
        self._actions = []
        self._numbers = count()
        self._now = 0.0
        self.sequences = {}

    def ask(self, at, index, prompt_tokens, num_decodes, priority=0):
        stages = [Stage(0, 0, 4)] if self.kind == "whole" else [Stage(0, 0, 4), Stage(1, 4, 8)]
        # Each its own tokens, as the simulator has it without shared prefixes.
        tokens = array("i", [1000 + index] * prompt_tokens)
        sequence = FirstSequence(index, tokens, Answer(num_decodes + 1, priority, at), stages)

        def arrive():
            if self.executor.was_dropped(index):
                return
            self.sequences[index] = self.executor.sequences[index] = sequence
            self.executor.add_arrival(sequence, NO_TOKEN, at)

        self._at(at, arrive)
        return sequence

    def come(self, at, request, layer):
        arriving = ArrivingPass(
            position=request.num_computed_tokens,
            num_tokens=request.num_new_tokens,
            payload=request.num_new_tokens,
            is_prefill=request.is_prefill,
            wants_token=request.yields_token,
            is_last=request.is_last_pass,
        )

        def arrive():
            if self.executor.was_dropped(request.index):
                return
            sequence = self.executor.sequences.get(request.index)
            if sequence is None:
                sequence = LaterSequence(request.index, layer, 8, [Stage(9, 8, 9)])
                self.executor.sequences[request.index] = sequence
            self.executor.add_arrival(sequence, arriving, at)

        self._at(at, arrive)

    def drop(self, at, *indices):
        self._at(at, lambda: self.executor.drop(list(indices)))

    def _at(self, at, act):
        self._actions.append((at, next(self._numbers), act))

    def run(self, until=inf):
        while True:
            self._actions.sort(key=lambda action: action[:2])
            due = self.executor.next_event_s()
            if self._actions and (due is None or self._actions[0][0] <= max(due, self._now)):
                at, _, act = self._actions.pop(0)
                self._now = max(self._now, at)
                act()
                if not (self._actions and self._actions[0][0] == at):
                    self.executor.advance(self._now)
            elif due is None or due > until:
                return self.log
            else:
                self._now = max(self._now, due)
                self.executor.advance(self._now)

    # outbox
    def send_passes(self, target, sequences, now):
        if self.kind == "first":
            back = [sequence for sequence in sequences if not sequence.is_last_pass]
            keys = [sequence.key for sequence in back]
            tokens = [7 if sequence.yields_token else NO_TOKEN for sequence in back]
            at = now + self.back_after_s
            self._at(at, lambda: self.executor.take_back(keys, tokens, at))
        self.note(now, [sequence.key for sequence in sequences])

    def send_tokens(self, keys, tokens, now, scores):
        self.note(now, keys)

    def out_of_blocks(self, keys):
        self.log += [(self._now, "preempted", key) for key in keys]

    def failed(self, keys, reason):
        self.log += [(self._now, "failed", key) for key in keys]
