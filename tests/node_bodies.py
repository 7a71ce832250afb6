"""One node with arrivals made by hand: what runs when, in batches of whom; in every body.

A token takes a second on a layer and a decode takes one too, but two if it is alone. Requests
come over links that take no time.
"""

from __future__ import annotations

from math import inf

from builders import capacity, make_scenario, make_timer, make_topology

from helixreal.engines.emulated import EmulatedEngine
from helixreal.net.messages import Place
from helixreal.worker.node_executor import Guest, Outbox, Station, Visit
from helixreal.worker.runner import TimedRunner
from helixsim.control.coordinator import ContextBound
from helixsim.models.event_loop import ExactEnvironment, ReusableEvent
from helixsim.models.links import DeliveryQueue, Link
from helixsim.models.paper_node import PaperNode
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


class SimulatedNode:
    """The simulator's node: requests go in at times of our choice, departures are noted."""

    def __init__(self, layers=(0, 1), entries=(), activation_bytes=0.0, **limits):
        start = layers[0]
        scenario = node_scenario(layers, activation_bytes, limits)
        self.environment = ExactEnvironment()
        self.inbox = DeliveryQueue()
        self.contexts = ContextBound()
        self.contexts.longest = 1000
        self.gpu = PaperNode(
            self.environment,
            make_topology(scenario).nodes[0],
            set(entries),
            make_timer(scenario),
            self.inbox,
            self.contexts,
        )
        self.gpu.connect(self, num_sources=1)
        self.log = []
        self._links = {
            layer: Link(
                PlacedLink(0, 1, 0, inf, 0.0, layer, 2.0),
                inf,
                self.inbox,
                self.environment.next_number,
            )
            for layer in (start, *entries)
        }

    def depart(self, batch, now):
        self.log.append((now, [request.index for request in batch.requests]))

    def come(self, at, *requests, layer=None):
        """Let requests come in at a time, at the node's first layer or at another."""
        link = self._links[min(self._links) if layer is None else layer]
        event = ReusableEvent(self.environment, lambda: link.send(Batch.of(list(requests)), at))
        event.set(at, 0.0)

    def run(self, until=1000.0):
        self.environment.run_through(until)
        return self.log


class WorkerNode(Outbox):
    """The same with a worker's station, whose clock is moved from event to event."""

    def __init__(self, layers=(0, 1), entries=(), activation_bytes=0.0, **limits):
        scenario = node_scenario(layers, activation_bytes, limits)
        self.node = make_topology(scenario).nodes[0]
        self.engine = self.make_engine(layers, entries)
        runner = TimedRunner(self.engine, make_timer(scenario))
        runner.slack_s = inf  # the clock below is never late
        self.station = Station(*layers, entries, self.node.capacity, runner, self)
        self.log = []
        self._layers = layers
        self._coming = []
        self._keys = {}

    def make_engine(self, layers, entries):
        """An engine with room for all."""
        return EmulatedEngine(MANY, layers[1] - layers[0], layers[1] + 1, 8.0)

    def payload(self, layer, num_tokens):
        """What a request brings along."""
        return [1] * num_tokens if layer == 0 else num_tokens

    def come(self, at, *requests, layer=None):
        self._coming.append((at, requests, self._layers[0] if layer is None else layer))

    def run(self):
        key = 0
        for at, requests, layer in sorted(self._coming, key=lambda each: each[0]):
            for request in requests:
                key += 1
                self._keys[key] = request.index
                place = Place(1, self._layers[1], self._layers[1] + 1)
                guest = self.station.guests[key] = Guest(layer, self._layers[1], [place])
                visit = Visit(
                    key,
                    request.context_tokens,
                    request.step_tokens,
                    guest,
                    self.payload(layer, request.step_tokens),
                    is_prefill=request.is_prefill,
                    wants_token=True,
                )
                assert self.engine.reserve(key, request.context_tokens + 1)
                self.station.expect(visit, at)
        while (at := self.station.next_event_s()) is not None:
            self.station.advance(at)
        return self.log

    def depart(self, target, visits, now):
        self.log.append((now, [self._keys[visit.key] for visit in visits]))

    def no_room(self, keys):
        raise AssertionError("there is room")

    def trouble(self, keys, reason):
        raise AssertionError(reason)


class TorchNode(WorkerNode):
    """A worker whose engine really computes; its batches are timed like the others."""

    model = None

    def make_engine(self, layers, entries):
        from helixreal.engines import make_engine
        from helixreal.engines.engine import EngineSpec

        return make_engine(
            "torch",
            EngineSpec(
                start_layer=layers[0],
                end_layer=layers[1],
                num_layers=8,
                entry_layers=(layers[0], *entries),
                model=str(self.model),
                kv_memory_bytes=8 << 20,
                max_context_tokens=256,
            ),
        )

    def payload(self, layer, num_tokens):
        if layer == 0:
            return [1] * num_tokens
        blank = bytes(num_tokens * self.engine.wire_bytes_per_token)
        return self.engine.unpack([blank], [num_tokens])[0]
