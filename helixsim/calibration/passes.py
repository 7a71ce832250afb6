"""Sends every recorded pass at its recorded time, independent of the previous pass.

Latencies of whole requests are chaotic: a few groups of decodes circulate in a pipeline, and one
group more or less changes medians by tens of per cent. With every pass sent at its recorded time,
an error in one pass does not propagate to the next, and single costs can be determined.
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
    """A part of a recorded run, as used by the fit.

    Attributes
    ----------
    scenario, topology
        The cluster of the run.
    routes
        Route of each pass.
    start_s, prompt_tokens, context_tokens
        Departure of each pass, seconds; its tokens if it is a prompt, else 0; tokens in the KV
        caches.
    latency_s
        Recorded latency.
    is_judged
        Whether the pass counts: it came back, and did not leave in the lead time.
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
        """Whether each pass is a prefill."""
        return np.array(self.prompt_tokens) > 0


def cut(run: RecordedRun, scenario: Scenario, slice_s: float, lead_s: float) -> Slice:
    """The last part of a run's sending.

    Parameters
    ----------
    run, scenario
        The recorded run and its cluster.
    slice_s
        Length of the part that counts.
    lead_s
        Lead time: passes before that part are sent, too, so that pipelines are equally full.

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
    """Latency of each pass with an engine, seconds; infinite for passes that get stuck."""
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
    """Takes the place of a policy: routes are known."""

    routing_point = RoutingPoint.ADMISSION


class _PassSender:
    """Takes the place of a coordinator: sends passes at their times and records their return."""

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
        """Send the pass."""
        return Admission.ADMITTED

    def returned(
        self, requests: list[Request], times: list[float]
    ) -> tuple[list[Request], list[float]]:
        """Record the return of passes; nothing follows."""
        for request, now in zip(requests, times, strict=True):
            self.end_s[request.index] = now
        return [], []

    def preempt(self, request: Request, now: float) -> Disruption:
        """Drop the pass; it counts as stuck."""
        return Disruption([request], [], [])

    def fail(self, request: Request, reason: str, now: float) -> list[Request]:
        """Drop the pass; it counts as stuck."""
        return []
