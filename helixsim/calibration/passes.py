"""Sends every recorded pass at its recorded time, independent of the previous pass.

Latencies of whole requests are chaotic: a few groups of decodes circulate in a pipeline, and one
group more or less changes medians by tens of per cent. With every pass sent at its recorded time,
an error in one pass does not propagate to the next, and single costs can be determined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from helixsim.control.actions import (
    Actions,
    Event,
    PassesReturned,
    RequestArrived,
    RequestFailed,
    RequestPreempted,
    RunStarted,
    ScheduledArrival,
    no_actions,
)
from helixsim.control.cluster_view import ClusterView
from helixsim.control.control_plane import placed_topology
from helixsim.control.node_schedulers.scheduler import ContextBound
from helixsim.control.routing import Policy
from helixsim.control.routing.maxflow import FlowRoute
from helixsim.control.routing.policy import RoutingPoint
from helixsim.models.build import Parts, build_models
from helixsim.models.event_loop import ExactEnvironment
from helixsim.physics.calibrated import CalibratedModel
from helixsim.physics.engine import EngineCosts
from helixsim.physics.performance_model import ModelInputs
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
        The recorded run and its scenario.
    slice_s
        Length of the part that is judged, in seconds.
    lead_s
        Time before it in which requests are sent too, so that pipelines are as full as recorded.

    Raises
    ------
    InputError
        If recorded routes do not fit the scenario's placement.
    """
    topology = placed_topology(scenario)
    maker = RouteMaker(run, topology)
    routes = {
        number: maker.route(request)
        for number, request in enumerate(run.requests)
        if request.stages
    }
    passes, end = run.passes, run.sending_ended_s
    begins = max(end - slice_s - lead_s, 0.0)
    has_route = np.array([number in routes for number in passes.request.tolist()])
    chosen = np.flatnonzero((passes.start_s >= begins) & (passes.start_s <= end) & has_route)
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
    """Latency of each pass with an engine, in seconds; infinite for passes that never return."""
    coordinator = _PassSender(part)
    environment = ExactEnvironment()
    scenario = replace(part.scenario, engine=engine)
    coordinator_node = build_models(
        Parts(
            scenario,
            environment,
            part.topology,
            cast(Policy, _Routed()),
            coordinator,
            CalibratedModel(ModelInputs(llm=scenario.llm, engine=engine)),
            ClusterView(len(part.topology.links)),
            seed,
        )
    ).coordinator_node
    coordinator_node.start()
    end = part.start_s[-1] + _MARGIN_S
    environment.run_through(end)
    coordinator_node.catch_up(end)
    taken: np.ndarray = coordinator.end_s - np.array(part.start_s)
    return taken


class _Routed:
    """Takes the place of a policy: routes are known."""

    routing_point = RoutingPoint.ADMISSION
    needs_transits = False


class _PassSender:
    """Takes the place of a coordinator: sends passes at their times and records their return."""

    def __init__(self, part: Slice) -> None:
        self.end_s = np.full(len(part.start_s), np.inf)
        self.active: dict[Request, None] = {}
        self.contexts = ContextBound()
        self._passes = _requests(part)

    def handle(self, event: Event, now: float) -> Actions:
        """Send passes that are due; drop passes that get stuck, which then never return."""
        actions = no_actions()
        match event:
            case RunStarted():
                self._schedule_next(actions)
            case RequestArrived(request):
                self._schedule_next(actions)
                actions.send.append(request)
                actions.ready_s.append(now)
                actions.admitted.append(request)
            case PassesReturned(requests, times_s):
                for request, at in zip(requests, times_s, strict=True):
                    self.end_s[request.index] = at
                actions.ended.extend(requests)
            case RequestPreempted(request) | RequestFailed(request):
                actions.dropped.append(request)
        return actions

    def _schedule_next(self, actions: Actions) -> None:
        request = next(self._passes, None)
        if request is not None:
            actions.arrivals.append(ScheduledArrival(request, 0.0))


def _requests(part: Slice) -> Iterator[Request]:
    """Passes, in order of time; each is a request of one pass."""
    for index, (route, at, prompt, context) in enumerate(
        zip(part.routes, part.start_s, part.prompt_tokens, part.context_tokens, strict=True)
    ):
        request = Request(index, at, max(prompt, 1), 1, num_decodes=0)
        request.route = route
        if not prompt:
            request.is_prefill = False
            request.num_computed_tokens = context
        yield request
