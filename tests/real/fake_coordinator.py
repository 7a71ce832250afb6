"""A coordinator of which a test sends every message by itself, and a worker in a thread."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

from builders import capacity, make_inputs, make_scenario, make_topology

from helixreal.coordinator.membership import Membership, MembershipSettings
from helixreal.net import messages
from helixreal.net.clock import Clock
from helixreal.net.transport import Transport
from helixreal.worker.settings import WorkerSettings
from helixreal.worker.worker import Worker
from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.errors import HelixError
from helixsim.profiles.machine import LatencyProfile

PATIENCE_S = 20
CHAIN = {"a": (0, 1), "b": (1, 2)}
FAST = LatencyProfile((0, 10_000), (0.0, 0.01))


class FakeCoordinator:
    """Membership over real sockets; the test decides when it hears and what it says."""

    def __init__(self, transport, node=None, **settings):
        scenario = make_scenario(
            CHAIN,
            requests=[(0, 1, 1)],
            room=capacity(kv_token_layers=100_000),
            prefill=FAST,
            decode=FAST,
        )
        self.scenario = replace(scenario, scheduler=replace(scenario.scheduler, node=node))
        self.topology = make_topology(self.scenario)
        self.transport = transport
        self.membership = Membership(
            self.scenario,
            self.topology,
            transport,
            Clock(1.0),
            MembershipSettings(**{"heartbeat_s": 0.05, "missing_s": 0.4} | settings),
            4096,
            reports_transits=False,
        )
        self.policy = MaxFlowPolicy(make_inputs(self.scenario))
        self.others = []

    def hear(self, seconds=0.02, *, alive=True):
        """Process messages for a while; all but those of membership are kept in `others`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.transport.inbox.poll(10)
            for message, _ in self.transport.received(100):
                match message:
                    case messages.Hello():
                        self.membership.on_hello(message)
                    case messages.Ready():
                        self.membership.on_ready(message)
                    case messages.Heartbeat():
                        self.membership.on_heartbeat(message)
                    case _:
                        self.others.append(message)
            if alive:
                self.membership.check_liveness(time.monotonic())

    def hear_until(self, condition, what):
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, f"waited in vain: {what}"
            self.hear()

    def state(self, name):
        return next(each.state for each in self.membership.workers if each.name == name)


@contextmanager
def worker_in_thread(name, coordinator, **settings):
    """A worker, and a list of the error with which it ends, if any."""
    errors = []
    with Transport("tcp://127.0.0.1:0") as transport:
        found = WorkerSettings(node=name, coordinator=coordinator, **settings)
        worker = Worker(found, transport)

        def run():
            try:
                worker.run()
            except HelixError as error:
                errors.append(error)

        thread = Thread(target=run)
        thread.start()
        worker.errors, worker.thread = errors, thread
        try:
            yield worker
        finally:
            worker.stop("the test is over")
            thread.join()
