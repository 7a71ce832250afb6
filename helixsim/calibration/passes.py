"""Every recorded pass sent at its recorded time, whatever became of the one before.

Latencies of whole requests are chaotic: what circulates in a pipeline are a few groups of decodes,
and one group more or less moves medians by tens of per cent. With every pass sent when it was
recorded, an error in one does not spread to the next, and the cost of parts can be told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from helixsim.control.control_plane import placed_topology
from helixsim.control.coordinator import Admission, ContextBound, Coordinator, Disruption
from helixsim.control.routing import Policy
from helixsim.control.routing.maxflow import FlowRoute
from helixsim.control.routing.policy import RoutingPoint
from helixsim.models.calibrated import calibrated_models
from helixsim.models.event_loop import ExactEnvironment
from helixsim.models.parts import Parts
from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import Topology
from helixsim.recorded.load import RouteMaker
from helixsim.recorded.recording import RecordedRun
from helixsim.requests import Request
from helixsim.scenario.resolved import Scenario

_MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a recorded run, as the fit looks at it.

    Attributes
    ----------
    scenario, topology
        Where it ran.
    routes
        Of each pass.
    start_s, prompt_tokens, context_tokens
        When each pass left, seconds; its tokens if it is a prompt, else 0; tokens in the caches.
    latency_s
        As recorded.
    is_judged
        Whether it counts: it came back, and did not leave while the part was filling up.
    """

    scenario: Scenario
    topology: Topology
    routes: list[FlowRoute]
    start_s: list[float]
    prompt_tokens: list[int]
    context_tokens: list[int]
    latency_s: np.ndarray
    is_judged: np.ndarray

    @property
    def is_prompt(self) -> np.ndarray:
        """Which passes are prefills."""
        return np.array(self.prompt_tokens) > 0


def cut(run: RecordedRun, scenario: Scenario, slice_s: float, lead_s: float) -> Slice:
    """The last part of a run's sending.

    Parameters
    ----------
    run, scenario
        What was recorded, and where.
    slice_s
        How much of it is judged.
    lead_s
        How much before that is sent, too, so that pipelines are as full as they were.

    Raises
    ------
    InputError
        If recorded routes do not fit the scenario's placement.
    """
    topology = placed_topology(scenario)
    maker = RouteMaker(run, topology)
    routes = [maker.route(request) for request in run.requests]
    passes, end = run.passes, run.sending_ended_s
    begins = max(end - slice_s - lead_s, 0.0)
    chosen = np.flatnonzero((passes.start_s >= begins) & (passes.start_s <= end))
    judged_from = begins + min(lead_s, (end - begins) / 2)
    return Slice(
        scenario,
        topology,
        [routes[number] for number in passes.request[chosen].tolist()],
        (passes.start_s[chosen] - begins).tolist(),
        np.where(passes.is_prompt[chosen], passes.num_tokens[chosen], 0).tolist(),
        passes.context_tokens[chosen].tolist(),
        passes.latency_s[chosen],
        np.isfinite(passes.latency_s[chosen]) & (passes.start_s[chosen] >= judged_from),
    )


def latencies(part: Slice, engine: EngineCosts, seed: int) -> np.ndarray:
    """How long each pass takes with an engine, seconds; infinite for passes that never return."""
    coordinator = _PassSender(part)
    environment = ExactEnvironment()
    parts = Parts(
        replace(part.scenario, engine=engine),
        environment,
        part.topology,
        cast(Policy, _Routed()),
        cast(Coordinator, coordinator),
        seed,
    )
    host = calibrated_models(parts).host
    host.follow(coordinator.later())
    end = part.start_s[-1] + _MARGIN_S
    environment.run_through(end)
    host.catch_up(end)
    taken: np.ndarray = coordinator.end_s - np.array(part.start_s)
    return taken


class _Routed:
    """Stands where a policy does: routes are known."""

    routing_point = RoutingPoint.ADMISSION


class _PassSender:
    """Stands where a coordinator does: sends passes at their times and notes their return."""

    def __init__(self, part: Slice) -> None:
        self._part = part
        self.end_s = np.full(len(part.start_s), np.inf)
        self.created: list[tuple[Request, float]] = []
        self.admitted: list[Request] = []
        self.active: dict[Request, None] = {}
        self.waiting: deque[Request] = deque()
        self.contexts = ContextBound()

    def later(self) -> Iterator[Request]:
        """Passes, in order of time; each is a request of one pass."""
        part = self._part
        for index, (route, at, prompt, context) in enumerate(
            zip(part.routes, part.start_s, part.prompt_tokens, part.context_tokens, strict=True)
        ):
            request = Request(index, at, max(prompt, 1), 1, last_iteration=0)
            request.route = route
            if not prompt:
                request.is_prefill = False
                request.context_tokens = context
            yield request

    def arrive(self, request: Request, now: float) -> Admission:
        """Send it."""
        return Admission.ADMITTED

    def returned(
        self, requests: list[Request], times: list[float]
    ) -> tuple[list[Request], list[float]]:
        """Note when passes came back; nothing follows."""
        for request, now in zip(requests, times, strict=True):
            self.end_s[request.index] = now
        return [], []

    def preempt(self, request: Request, now: float) -> Disruption:
        """Drop it; it counts as stuck."""
        return Disruption([request], [], [])

    def fail(self, request: Request, reason: str, now: float) -> list[Request]:
        """Drop it; it counts as stuck."""
        return []
