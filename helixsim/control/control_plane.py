"""The deciding parts of a run, put together from a scenario: for either body, simulated or real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from sys import maxsize

from helixsim.control.coordinator import Coordinator
from helixsim.control.load import LoadGenerator
from helixsim.control.routing import POLICIES, Policy, PolicyInputs
from helixsim.errors import NoRouteError, ScenarioError
from helixsim.metrics.recorder import RunRecorder
from helixsim.physics import PHYSICS_PROFILES
from helixsim.placement.balanced_flow import balanced_flow
from helixsim.placement.flow import Flow, max_flow
from helixsim.placement.topology import Topology, build_topology, without_nodes
from helixsim.profiles.throughput import estimate_throughput
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.resolved import Scenario


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What decides in a run, and what it keeps a record in.

    Attributes
    ----------
    topology, flow
        Nodes and links, and the maximum flow over them.
    policy
        Finds routes.
    coordinator
        Decides what becomes of requests.
    recorder
        Is told what happens.
    """

    topology: Topology
    flow: Flow
    policy: Policy
    coordinator: Coordinator
    recorder: RunRecorder


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
            "a run needs a placement: write one here, or name a file that has one",
            where="placement",
        )
    return build_topology(
        scenario.llm, scenario.cluster, scenario.placement, scenario.machine_types
    )


def build_control_plane(
    scenario: Scenario,
    topology: Topology,
    *,
    seed: int,
    start_s: float,
    passes_beyond_answer: int | None = None,
    keep_iterations: bool = False,
    load_generator: LoadGenerator | None = None,
    make_policy: Callable[[PolicyInputs], Policy] | None = None,
    make_recorder: type[RunRecorder] = RunRecorder,
) -> ControlPlane:
    """Make what decides in a run.

    Parameters
    ----------
    scenario
        What is run.
    topology
        Of its placement; a real cluster puts the capacities that it found there in.
    seed
        Of the run's one random stream.
    start_s
        When feeding starts.
    passes_beyond_answer
        See :class:`~helixsim.control.coordinator.Coordinator`; if not that of the physics.
    keep_iterations
        Whether to keep a row for every pass.
    load_generator
        Who sends requests, if not the scenario's workload.
    make_policy
        Makes what finds routes, if not the scenario's policy.
    make_recorder
        Makes the recorder.
    """
    run, scheduler = scenario.run, scenario.scheduler
    physics = PHYSICS_PROFILES[scenario.physics]
    flow = followed_flow(scenario, topology)
    rng = Random(seed)
    policy = (make_policy or POLICIES[scheduler.policy])(
        PolicyInputs(
            topology=topology,
            flow=flow,
            high_water_mark=scheduler.kv.high_water_mark,
            expected_output_tokens=scenario.workload.mean_output_tokens
            * scheduler.kv.expected_output_ratio,
            min_flow_share=scheduler.min_flow_share,
            uses_small_shares_alone=physics.requests_wait,
            rng=rng,
        )
    )
    recorder = make_recorder(
        start_s + run.warmup_s,
        start_s + run.duration_s,
        tuple(node.name for node in topology.nodes),
        keep_iterations=keep_iterations,
    )
    if load_generator is None:
        load_generator = build_load_generator(scenario, rng, start_s)
    coordinator = Coordinator(
        policy,
        load_generator,
        recorder,
        physics.passes_beyond_answer if passes_beyond_answer is None else passes_beyond_answer,
        node_names=tuple(node.name for node in topology.nodes),
        reflow=lambda down: flow_without(scenario, topology, down) if down else flow,
        prefill_chunk_tokens=_chunk_tokens(scenario, topology),
        max_waiting=_max_waiting(scenario),
    )
    return ControlPlane(topology, flow, policy, coordinator, recorder)


def _max_waiting(scenario: Scenario) -> int:
    """How many may wait for room: as the scenario says, else all whose physics lets them."""
    wanted = scenario.scheduler.max_waiting
    if wanted is not None:
        return wanted
    return maxsize if PHYSICS_PROFILES[scenario.physics].requests_wait else 0


def _chunk_tokens(scenario: Scenario, topology: Topology) -> int | None:
    """The longest prefill that goes out at once: where requests wait, as long as all nodes take."""
    wanted = scenario.scheduler.prefill_chunk_tokens
    if wanted is not None or not PHYSICS_PROFILES[scenario.physics].requests_wait:
        return wanted
    return min(node.capacity.max_prompt_tokens for node in topology.nodes)


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


def flow_without(scenario: Scenario, topology: Topology, down: frozenset[int]) -> Flow | None:
    """The flow that requests follow while some nodes are down; None if no route is left."""
    try:
        rest = without_nodes(topology, down)
    except NoRouteError:
        return None
    flow = followed_flow(scenario, rest)
    if flow.tokens_per_s <= 0:
        return None
    by_link = [0.0] * len(topology.links)
    for link, tokens_per_s in zip(rest.links, flow.link_tokens_per_s, strict=True):
        by_link[link.index] = tokens_per_s
    return replace(flow, link_tokens_per_s=tuple(by_link))
