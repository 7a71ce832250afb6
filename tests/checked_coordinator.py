"""A coordinator that checks its invariants after every event, and short ways to tell it events."""

from __future__ import annotations

from helixsim.control.actions import (
    NodeLost,
    NodeRecovered,
    PassesReturned,
    RequestArrived,
    RequestCancelled,
    RequestPreempted,
    RunStarted,
)
from helixsim.control.coordinator import Coordinator


class CheckedCoordinator(Coordinator):
    """Validates itself after every event; the methods below tell it one event each."""

    def handle(self, event, now):
        actions = super().handle(event, now)
        self.validate()
        assert len(actions.send) == len(actions.ready_s)
        assert all(request in self.active for request in actions.send)
        assert all(request in actions.send for request in actions.admitted)
        assert not any(request in self.active for request in (*actions.dropped, *actions.ended))
        return actions

    def start(self):
        """Begin the run; the requests that are to arrive."""
        return [arrival.request for arrival in self.handle(RunStarted(), 0.0).arrivals]

    def arrive(self, request, now):
        return self.handle(RequestArrived(request), now)

    def returned(self, requests, times):
        return self.handle(PassesReturned(requests, times), times[-1])

    def node_lost(self, node, now):
        return self.handle(NodeLost(node), now)

    def node_recovered(self, node, now):
        return self.handle(NodeRecovered(node), now)

    def preempt(self, request, now):
        return self.handle(RequestPreempted(request), now)

    def cancel(self, request, now):
        return self.handle(RequestCancelled(request), now)
