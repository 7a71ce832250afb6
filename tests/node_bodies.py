"""One node with arrivals made by hand: what runs when, in which batches; in every executor.

With the paper's performance model a token takes a second on a layer and a decode takes one too,
but two if it is alone. Requests come over links that take no time.
"""

from __future__ import annotations

from itertools import count
from math import inf

from builders import capacity, make_scenario, make_timer, make_topology

from helixreal.engines.emulated import EmulatedEngine
from helixreal.net.messages import Stage
from helixreal.worker.node_executor import NodeExecutor
from helixreal.worker.runner import TimedRunner
from helixreal.worker.sequences import ArrivingPass, SequenceState, StreamedChunk
from helixsim.control.kv_cache import KvCache
from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.control.node_schedulers.composition import StepComposer
from helixsim.models.engine_node import EngineNode
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, SerialLink
from helixsim.models.paper_node import PaperNode
from helixsim.physics.engine import IDEAL_ENGINE
from helixsim.placement.topology import PlacedLink
from helixsim.steps import Batch

MANY = 10**6


def node_scenario(layers, activation_bytes, limits):
    around = {"node": layers}
    if layers[0]:
        around["before"] = (0, layers[0])
    return make_scenario(
        around, requests=[(0, 1, 1)], activation_bytes=activation_bytes, room=capacity(**limits)
    )


class NodeUnderTest:
    """What the nodes of all executors have in common: a scheduler, a log, a script.

    Attributes
    ----------
    log
        (time, indices) of every batch that leaves, and (time, "preempted" or "failed", index).
    when_departed
        Called with (time, indices) of a batch that leaves; may let more requests come.
    """

    def __init__(
        self,
        layers=(0, 1),
        entries=(),
        activation_bytes=0.0,
        scheduler="paper",
        engine=IDEAL_ENGINE,
        counts_kv=False,
        composition=None,
        num_llm_layers=0,
        **limits,
    ):
        self.layers, self.entries = layers, entries
        self.scenario = node_scenario(layers, activation_bytes, limits)
        self.placed = make_topology(self.scenario).nodes[0]
        self.physics = "paper" if scheduler == "paper" and not counts_kv else "calibrated"
        self.counts_kv = counts_kv
        self.engine_costs = engine
        self.log = []
        self.when_departed = lambda now, indices: None
        factory = NODE_SCHEDULERS.get(scheduler)
        self.scheduler = factory(
            NodeSchedulerInputs(
                name="node",
                start_layer=layers[0],
                end_layer=layers[1],
                entry_layers=entries,
                limits=self.placed.capacity,
                kv=self.make_kv(factory),
                engine=engine,
                num_llm_layers=num_llm_layers,
                composer=composition and StepComposer(composition, 2.0),
            )
        )

    def make_kv(self, factory):
        """The blocks that the scheduler counts, if it does."""
        if not (factory.counts_kv or self.counts_kv):
            return None
        return KvCache.by_layer(self.placed.capacity.kv_token_layers, self.layers[1])

    def make_timer(self):
        """What times the node's steps."""
        return make_timer(self.scenario, physics=self.physics, engine=self.engine_costs)

    def note_departure(self, now, indices):
        self.scheduler.validate()
        self.log.append((now, indices))
        self.when_departed(now, indices)


class SimulatedNode(NodeUnderTest):
    """The simulator's node: requests go in at times of our choice, departures are noted."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.environment = ExactEnvironment()
        self.inbox = DeliveryQueue()
        self._gone = set()
        parts = (self.environment, self.placed, self.scheduler, self.make_timer(), self.inbox)
        self.node = PaperNode(*parts) if self.physics == "paper" else EngineNode(*parts, self)
        self.node.connect(self, num_sources=1)
        self._links = {
            layer: SerialLink(
                PlacedLink(0, 1, 0, inf, 0.0, layer, 2.0),
                inf,
                self.inbox,
                self.environment.next_number,
            )
            for layer in (self.layers[0], *self.entries)
        }

    # egress
    def depart(self, batch, now):
        self.note_departure(now, [request.index for request in batch.requests])

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
                self._gone.add(request)
                self.node.drop_unless(lambda other, gone=request: other.origin is not gone)

    def come(self, at, *requests, layer=None):
        """Let requests come in at a time, at the node's first layer or at another."""
        link = self._links[min(self._links) if layer is None else layer]
        ReusableEvent(self.environment, lambda: self._send(link, requests, at)).schedule(at, 0.0)

    def _send(self, link, requests, at):
        wanted = [request for request in requests if request.origin not in self._gone]
        if wanted:
            link.send(Batch.of(wanted), at)

    def drop(self, at, *requests):
        """Drop requests at a time, as the coordinator has it when another node is lost."""

        def drop():
            self._gone.update(requests)
            self.node.drop_unless(lambda request: request.origin not in requests)

        ReusableEvent(self.environment, drop).schedule(at, 0.0)

    def run(self, until=inf):
        self.environment.run_through(until)
        return self.log


class WorkerNode(NodeUnderTest):
    """The same with a worker's executor, whose clock is moved from event to event."""

    def __init__(self, *args, **settings):
        self.engine = None
        super().__init__(*args, **settings)
        if self.engine is None:
            self.engine = self.make_engine()
        runner = TimedRunner(self.engine, self.make_timer())
        runner.slack_s = inf  # the clock below is never late
        self.executor = NodeExecutor(self.scheduler, runner, self)
        self._actions = []
        self._numbers = count()
        self._now = 0.0

    def make_engine(self):
        """An engine with room for all."""
        return EmulatedEngine(MANY, self.layers[1], self.layers[1] + 1, 8.0)

    def payload(self, layer, num_tokens):
        """What a request brings along."""
        return [1] * num_tokens if layer == 0 else num_tokens

    def come(self, at, *requests, layer=None):
        entry = self.layers[0] if layer is None else layer
        self._actions.append((at, next(self._numbers), lambda: self._expect(at, requests, entry)))

    def drop(self, at, *requests):
        def drop():
            self.executor.drop([request.index + 1 for request in requests])

        self._actions.append((at, next(self._numbers), drop))

    def _expect(self, at, requests, layer):
        self.executor.next_message()
        for request in requests:
            key = request.index + 1
            if self.executor.was_dropped(key):
                continue
            sequence = self.executor.sequences.get(key)
            if sequence is None:
                end = self.layers[1]
                sequence = SequenceState(key, layer, end, [Stage(1, end, end + 1)])
                self.executor.sequences[key] = sequence
            is_streamed = request.origin is not request
            arriving = ArrivingPass(
                position=request.num_computed_tokens,
                num_tokens=request.num_new_tokens,
                payload=self.payload(layer, request.num_new_tokens),
                is_prefill=request.is_prefill,
                wants_token=not is_streamed,
            )
            entering = StreamedChunk(sequence) if is_streamed else sequence
            self.executor.add_arrival(entering, arriving, at)

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
        self.note_departure(now, [sequence.key - 1 for sequence in sequences])

    def out_of_blocks(self, keys):
        for key in keys:
            self.log.append((self._now, "preempted", key - 1))

    def failed(self, keys, reason):
        for key in keys:
            self.log.append((self._now, "failed", key - 1))


class TorchNode(WorkerNode):
    """A worker whose engine really computes; its batches are timed like the others."""

    model = None

    def make_kv(self, factory):
        from helixreal.engines import make_engine
        from helixreal.engines.engine import EngineSpec

        self.engine = make_engine(
            "torch",
            EngineSpec(
                start_layer=self.layers[0],
                end_layer=self.layers[1],
                num_layers=8,
                entry_layers=(self.layers[0], *self.entries),
                model=str(self.model),
                kv_memory_bytes=8 << 20,
                max_context_tokens=256,
            ),
        )
        return self.engine.kv

    def payload(self, layer, num_tokens):
        if layer == 0:
            return [1] * num_tokens
        blank = bytes(num_tokens * self.engine.wire_bytes_per_token)
        return self.engine.unpack([blank], [num_tokens])[0]
