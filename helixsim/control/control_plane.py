"""What decides in a run, put together from a scenario: for either executor, simulated or real."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf, log2
from sys import maxsize
from typing import TYPE_CHECKING, cast

from helixsim.control.admission import admission_topology, with_kv_tokens
from helixsim.control.cluster_view import ClusterView
from helixsim.control.coordinator import Coordinator
from helixsim.control.lateness import Lateness
from helixsim.control.load import LoadGenerator
from helixsim.control.node_schedulers import NODE_SCHEDULERS, composes_steps, decodes_loop
from helixsim.control.node_schedulers.composition import AUTO, NO_LIMITS, StepLimits
from helixsim.control.recorder import Recorder
from helixsim.control.routing import POLICIES, Policy, PolicyInputs
from helixsim.control.routing.policy import RoutingPoint
from helixsim.errors import InputError, NoRouteError, ScenarioError
from helixsim.physics.performance_model import (
    PERFORMANCE_MODELS,
    ModelInputs,
    PerformanceModel,
)
from helixsim.placement.balanced_flow import balanced_flow
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.topology import PlacedNode, Topology, build_topology, without
from helixsim.profiles.throughput import estimate_throughput

if TYPE_CHECKING:
    from random import Random

    from helixsim.scenario.resolved import Scenario, Slo


FEWEST_CHUNK_TOKENS = 256
_MOST_CHUNK_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What decides in a run.

    Attributes
    ----------
    topology, flow
        Nodes and links, and the maximum flow over them.
    performance
        How long work takes.
    view
        The cluster as policies see it; the executor fills it.
    policy
        Finds routes.
    coordinator
        Decides what becomes of requests.
    decodes_loop
        Whether decodes go on at the nodes by themselves.
    composition
        Limits of the steps of all nodes; None where prefills are not streamed and steps not
        limited.
    num_stages
        Stages of a route, on average over the flow.
    """

    topology: Topology
    flow: Flow
    performance: PerformanceModel
    view: ClusterView
    policy: Policy
    coordinator: Coordinator
    decodes_loop: bool
    composition: StepLimits | None
    num_stages: float


def performance_model(scenario: Scenario) -> PerformanceModel:
    """The performance model that a scenario names as its ``physics``."""
    inputs = ModelInputs(llm=scenario.llm, engine=scenario.engine)
    return cast("PerformanceModel", PERFORMANCE_MODELS.make(scenario.physics, inputs))


def node_scheduler_name(scenario: Scenario) -> str:
    """The node scheduler that a scenario names, or the one that goes with its physics."""
    return scenario.scheduler.node or performance_model(scenario).node_scheduler


def placed_topology(scenario: Scenario) -> Topology:
    """Lay the placement of a scenario over its cluster.

    Raises
    ------
    ScenarioError
        If it has none.
    NoRouteError
        If no route leads through all layers.
    """
    if scenario.placement is None:
        raise ScenarioError(
            "a run needs a placement: write one here, name a file that has one (helixsim plan "
            "writes it), or use helixsim.place(scenario)",
            where="placement",
        )
    topology = build_topology(
        scenario.llm, scenario.cluster, scenario.placement, scenario.machine_types
    )
    return with_kv_tokens(topology, scenario.engine.kv_tokens)


def build_control_plane(
    scenario: Scenario,
    topology: Topology,
    *,
    load_generator: LoadGenerator,
    recorder: Recorder,
    rng: Random,
    passes_beyond_answer: int | None = None,
    make_policy: Callable[[PolicyInputs], Policy] | None = None,
) -> ControlPlane:
    """Make what decides in a run.

    Parameters
    ----------
    scenario
        What is run.
    topology
        Of its placement; a real cluster puts the capacities that it found there in.
    load_generator
        Creates requests.
    recorder
        Keeps what happens.
    rng
        The run's one random stream.
    passes_beyond_answer
        See :class:`~helixsim.control.coordinator.Coordinator`; if not that of the physics.
    make_policy
        Makes what finds routes, if not the scenario's policy.
    """
    scheduler = scenario.scheduler
    performance = performance_model(scenario)
    factory = NODE_SCHEDULERS.get(scheduler.node or performance.node_scheduler)
    loops = decodes_loop(factory)
    flow = followed_flow(scenario, topology)
    view = ClusterView(len(topology.links))
    inputs = PolicyInputs(
        topology=admission_topology(
            topology,
            scenario.engine,
            counts_kv=factory.counts_kv or scheduler.kv.admission == "exact",
            loops=loops,
        ),
        flow=flow,
        high_water_mark=inf
        if loops and _has_only_whole_nodes(topology)
        else scheduler.kv.high_water_mark,
        expected_output_tokens=scenario.workload.mean_output_tokens
        * scheduler.kv.expected_output_ratio,
        min_flow_share=scheduler.min_flow_share,
        half_of_equal_is_enough=performance.requests_wait,
        admits_by_held_kv=scheduler.kv.admission == "exact"
        and not (loops and _has_only_whole_nodes(topology)),
        ttft_limit_s=_ttft_limit_s(scenario.slos),
        tpot_limit_s=min((slo.tpot_s for slo in scenario.slos if slo.tpot_s), default=None),
        rng=rng,
        view=view,
    )
    policy = make_policy(inputs) if make_policy else POLICIES.make(scheduler.policy, inputs)
    if not isinstance(policy.routing_point, RoutingPoint):
        raise InputError(
            f"the routing policy '{scheduler.policy}' has a routing_point of "
            f"{policy.routing_point!r}; it must be a RoutingPoint, such as RoutingPoint.HOP"
        )
    if passes_beyond_answer is None:
        passes_beyond_answer = performance.passes_beyond_answer
    coordinator = Coordinator(
        policy,
        load_generator,
        recorder,
        passes_beyond_answer,
        node_names=tuple(node.name for node in topology.nodes),
        front_end_names=tuple(front_end.name for front_end in topology.front_ends),
        reflow=lambda down, cut: (
            flow_without(scenario, topology, down, cut) if down or cut else flow
        ),
        prefill_chunk_tokens=_chunk_tokens(scenario, topology, performance, loops=loops),
        streams_chunks=scheduler.stream_chunks and composes_steps(factory),
        longest_chunk_tokens=min(node.capacity.max_prompt_tokens for node in topology.nodes),
        max_waiting=_max_waiting(scenario, performance),
        decodes_loop=loops,
        lateness=_lateness(scenario),
    )
    return ControlPlane(
        topology,
        flow,
        performance,
        view,
        policy,
        coordinator,
        loops,
        step_composition(scenario, topology),
        mean_stages(topology, flow),
    )


def _has_only_whole_nodes(topology: Topology) -> bool:
    """Whether each node holds the whole LLM: then requests wait in the queues of the nodes."""
    return all(node.num_layers == topology.llm.num_layers for node in topology.nodes)


def _max_waiting(scenario: Scenario, performance: PerformanceModel) -> int:
    """How many requests may wait: as the scenario has it, else all where the physics lets them."""
    wanted = scenario.scheduler.max_waiting
    if wanted is not None:
        return wanted
    return maxsize if performance.requests_wait else 0


def _chunk_tokens(
    scenario: Scenario, topology: Topology, performance: PerformanceModel, *, loops: bool
) -> int | None:
    """The longest prefill that leaves at once: where requests wait, as long as all nodes take."""
    wanted = scenario.scheduler.prefill_chunk_tokens
    if loops:  # nodes split prefills by themselves
        return None if wanted == AUTO else wanted
    longest = min(node.capacity.max_prompt_tokens for node in topology.nodes)
    if wanted == AUTO:
        return min(suitable_chunk_tokens(scenario, topology), longest)
    if wanted is not None or not performance.requests_wait:
        return wanted
    return longest


def suitable_chunk_tokens(scenario: Scenario, topology: Topology) -> int:
    """Tokens of a chunk that suits the machines, as a power of 2.

    Shorter chunks waste the time in which the weights are read, longer ones hold up decodes: it is
    the mean over the nodes of the tokens whose prefill takes one and a half times as long as two
    decodes. With mixed batches it is half of that: weights are read once for both, and decodes wait
    for the chunk in their own pass.
    """
    tokens = [_chunk_tokens_of(node) for node in topology.nodes]
    suitable: int = 1 << round(log2(sum(tokens) / len(tokens)))
    return suitable // 2 if mixes_batches(scenario) else suitable


def mixes_batches(scenario: Scenario) -> bool:
    """Whether prefills and decodes run in one pass."""
    return scenario.physics == "calibrated" and scenario.engine.batching == "mixed"


def _chunk_tokens_of(node: PlacedNode) -> int:
    """The fewest tokens, of 256 to 4096, whose prefill takes 1.5 times as long as two decodes."""
    profile = node.profile
    wanted_s = 1.5 * profile.decode(2)
    few, many = FEWEST_CHUNK_TOKENS, _MOST_CHUNK_TOKENS
    while few < many:
        middle = (few + many) // 2
        if profile.prefill(middle) < wanted_s:
            few = middle + 1
        else:
            many = middle
    return few


def step_composition(scenario: Scenario, topology: Topology) -> StepLimits | None:
    """Limits of the steps of all nodes; see :class:`ControlPlane`."""
    scheduler = scenario.scheduler
    limits = scheduler.step
    if not composes_steps(NODE_SCHEDULERS.get(node_scheduler_name(scenario))):
        return None
    if limits == NO_LIMITS and not scheduler.stream_chunks:
        return None
    if limits.max_prefill_tokens != AUTO:
        return limits
    tokens = scheduler.prefill_chunk_tokens
    tokens = suitable_chunk_tokens(scenario, topology) if tokens == AUTO else tokens
    return replace(limits, max_prefill_tokens=tokens)


def mean_stages(topology: Topology, flow: Flow) -> float:
    """Stages of a route, on average: how often a token passes from one node to another."""
    total = sum(flow.link_tokens_per_s)
    return total / flow.tokens_per_s - 1 if flow.tokens_per_s > 0 else 1.0


def _ttft_limit_s(slos: Iterable[Slo]) -> float | None:
    """The strictest limit of the time to the first token."""
    return min((slo.ttft_s for slo in slos if slo.ttft_s), default=None)


def _lateness(scenario: Scenario) -> Lateness:
    """Requests of a class of users are late by its SLO and by the SLOs of all requests."""
    names = scenario.workload.class_names
    of_all = [slo for slo in scenario.slos if slo.name not in names]
    limits = {
        name: _ttft_limit_s([*of_all, *(slo for slo in scenario.slos if slo.name == name)])
        for name in names
    }
    return Lateness(_ttft_limit_s(of_all), scenario.scheduler.late_requests, limits)


def followed_flow(scenario: Scenario, topology: Topology) -> Flow:
    """The maximum flow that requests follow, as the scenario's scheduler has it split."""
    workload = scenario.workload
    throughput = estimate_throughput(
        scenario.llm,
        scenario.profiles(),
        scenario.cluster.machine_mix(),
        mean_prompt_tokens=workload.mean_prompt_tokens,
        mean_output_tokens=workload.mean_output_tokens,
    )
    if scenario.scheduler.flow_split == "balanced":
        return balanced_flow(
            topology, throughput, workload.mean_prompt_tokens, workload.mean_output_tokens
        )
    return max_flow(topology, throughput)


def flow_without(
    scenario: Scenario,
    topology: Topology,
    down: frozenset[int],
    cut: frozenset[tuple[int, int]] = frozenset(),
) -> Flow | None:
    """The flow that requests follow while some nodes are down and some links are cut.

    Links are (source, target), by number. None if no route is left.
    """
    try:
        rest = without(topology, down, cut)
    except NoRouteError:
        return None
    flow = followed_flow(scenario, rest)
    if flow.tokens_per_s <= 0:
        return None
    by_link = [0.0] * len(topology.links)
    for link, tokens_per_s in zip(rest.links, flow.link_tokens_per_s, strict=True):
        by_link[link.index] = tokens_per_s
    return replace(flow, link_tokens_per_s=tuple(by_link))
