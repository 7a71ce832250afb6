"""Toy clusters and scenarios whose numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from helixsim.cluster import COORDINATOR, Cluster, FrontEnd, Link, LinkList, Nic, Node
from helixsim.control.cluster_view import ClusterView
from helixsim.control.routing import PolicyInputs
from helixsim.physics.engine import IDEAL_ENGINE, EngineCosts
from helixsim.physics.performance_model import PERFORMANCE_MODELS, ModelInputs
from helixsim.placement.flow import Flow
from helixsim.placement.placement import Placement
from helixsim.placement.topology import Topology, build_topology
from helixsim.profiles.machine import (
    LLM,
    Capacity,
    LatencyProfile,
    MachineProfile,
    MachineType,
    PlannerHints,
)
from helixsim.requests import Request, TraceRequest
from helixsim.scenario.resolved import RunSettings, Scenario
from helixsim.scenario.scheduler_settings import KvSettings, SchedulerSettings
from helixsim.scenario.workload_values import Workload
from helixsim.steps import Batch, Step
from helixsim.traces.values import Lengths, Trace

HOST = COORDINATOR

Layers = Mapping[str, tuple[int, int]]
Pairs = Mapping[tuple[str, str], tuple[float, float]]
"""(source, target) -> (bytes per second, latency in seconds)."""

ROOMY = Capacity(
    kv_token_layers=10**9,
    max_prompts=100,
    max_prompt_tokens=10_000,
    max_decode_tokens=1000,
    max_decode_context=10**9,
)
LINEAR = LatencyProfile((0, 10_000), (0.0, 10_000.0))
"""One second per token."""


def capacity(**changes: int) -> Capacity:
    """Room for everything, but for the limits given."""
    return replace(ROOMY, **changes)


def make_llm(num_layers: int, *, activation_bytes: float = 8.0) -> LLM:
    return LLM(
        name="toy",
        num_layers=num_layers,
        activation_bytes_per_token=activation_bytes,
        token_bytes=2.0,
        layer_bytes=1.0,
        kv_bytes_per_token_layer=1.0,
    )


def make_machine_type(
    name: str,
    num_layers: int,
    *,
    prefill: LatencyProfile = LINEAR,
    decode: LatencyProfile = LINEAR,
    room: Capacity = ROOMY,
    nic: float = 1e12,
) -> MachineType:
    profile = MachineProfile(
        machine_type=name,
        llm="toy",
        prefill=prefill,
        decode=decode,
        capacities=dict.fromkeys(range(1, num_layers + 1), room),
        max_layers=num_layers,
        hints=PlannerHints(1, 1, 1.0),
    )
    return MachineType(name, 1e9, nic, 1e9, {"toy": profile})


def make_cluster(
    types: Mapping[str, str], links: Pairs, nics: Mapping[str, float] | None = None
) -> Cluster:
    """Nodes with the machine types given; NICs without limit but for those given."""
    nics = nics or {}

    def nic(name: str) -> Nic:
        return Nic(nics.get(name, 1e12), nics.get(name, 1e12))

    return Cluster(
        nodes=tuple(Node(name, kind, nic(name), 1e9) for name, kind in types.items()),
        front_ends=(FrontEnd(nic(HOST)),),
        network=LinkList({pair: Link(*pair, *values) for pair, values in links.items()}),
    )


def fitting_pairs(layers: Layers, num_layers: int) -> list[tuple[str, str]]:
    """Every ordered pair over which a request can go on."""
    pairs = [(HOST, name) for name, (start, _) in layers.items() if start == 0]
    for a, (_, end) in layers.items():
        pairs += [(a, b) for b, (start, stop) in layers.items() if start <= end < stop]
        if end == num_layers:
            pairs.append((a, HOST))
    return pairs


def make_scenario(
    layers: Layers,
    *,
    requests: Sequence[tuple[float, int, int]] | None = None,
    links: Pairs | None = None,
    link: tuple[float, float] = (1e9, 0.001),
    nics: Mapping[str, float] | None = None,
    types: Mapping[str, MachineType] | None = None,
    policy: str = "maxflow",
    activation_bytes: float = 8.0,
    duration_s: float = 100.0,
    warmup_s: float = 0.0,
    drain: bool = False,
    seed: int = 0,
    sample_interval_s: float = 10.0,
    high_water_mark: float = 0.85,
    feed_high_water_mark: float = 0.8,
    min_flow_share: float = 0.05,
    workload: Workload | None = None,
    **machine: object,
) -> Scenario:
    """A scenario without files.

    `requests` are (arrival, prompt tokens, output tokens), times from the start of feeding,
    which is 2 s. `types` has a machine type for every node; without it, all nodes are alike and
    `machine` says how they are (see :func:`make_machine_type`).
    """
    num_layers = max(end for _, end in layers.values())
    if types is None:
        types = dict.fromkeys(layers, make_machine_type("kind", num_layers, **machine))  # type: ignore[arg-type]
    if links is None:
        links = dict.fromkeys(fitting_pairs(layers, num_layers), link)
    if workload is None:
        assert requests is not None
        workload = Workload(
            mode="online",
            trace=Trace(tuple(TraceRequest(*request) for request in requests)),
            mean_prompt_tokens=10,
            mean_output_tokens=4,
        )
    return Scenario(
        name="toy",
        llm=make_llm(num_layers, activation_bytes=activation_bytes),
        machine_types={kind.name: kind for kind in types.values()},
        cluster=make_cluster({name: types[name].name for name in layers}, links, nics),
        placement=Placement(dict(layers), tuple(links)),
        scheduler=SchedulerSettings(
            policy=policy,
            kv=KvSettings(high_water_mark=high_water_mark),
            feed_high_water_mark=feed_high_water_mark,
            min_flow_share=min_flow_share,
        ),
        workload=workload,
        physics="paper",
        run=RunSettings(
            seed=seed,
            warmup_s=warmup_s,
            duration_s=duration_s,
            drain=drain,
            sample_interval_s=sample_interval_s,
        ),
        document={"name": "toy"},
        digest="0" * 64,
    )


def offline(pairs: Sequence[tuple[int, int]], **changes: object) -> Workload:
    """A closed loop that draws from the lengths given."""
    settings: dict[str, object] = {"mean_prompt_tokens": 10, "mean_output_tokens": 4}
    return Workload(mode="offline", lengths=Lengths(tuple(pairs)), **(settings | changes))  # type: ignore[arg-type]


def make_topology(scenario: Scenario) -> Topology:
    assert scenario.placement is not None
    return build_topology(
        scenario.llm, scenario.cluster, scenario.placement, scenario.machine_types
    )


def make_inputs(
    scenario: Scenario, flows: Mapping[tuple[str, str], float] | None = None, **changes: object
) -> PolicyInputs:
    """What a policy is made of; the flow over each link as given, else 1 token/s."""
    topology = make_topology(scenario)
    by_link = tuple(
        (flows or {}).get((topology.name(link.source), topology.name(link.target)), 1.0)
        for link in topology.links
    )
    total = sum(by_link[link.index] for link in topology.outgoing[topology.coordinator])
    settings: dict[str, object] = {
        "high_water_mark": 0.85,
        "expected_output_tokens": 4.0,
        "min_flow_share": 0.05,
        "rng": Random(0),
        "view": ClusterView(len(topology.links)),
    }
    return PolicyInputs(
        topology=topology,
        flow=Flow(total, by_link, (1.0,) * len(topology.nodes)),
        **(settings | changes),  # type: ignore[arg-type]
    )


def make_timer(
    scenario: Scenario,
    node: int = 0,
    physics: str = "paper",
    engine: EngineCosts = IDEAL_ENGINE,
):
    """What times the steps of a node."""
    model = PERFORMANCE_MODELS.get(physics)(ModelInputs(llm=scenario.llm, engine=engine))
    return model.step_timer(make_topology(scenario).nodes[node])


def one_pass(batch: Batch, num_layers: int, received_tokens: int = 0) -> Step:
    """A step of one pass."""
    return Step([batch], (0, num_layers), received_tokens=received_tokens)


def prompt(tokens: int, index: int = 0, *, output: int = 1) -> Request:
    """A request in its prefill."""
    return Request(index, 0.0, tokens, output, num_decodes=output)


def decode(context: int, index: int = 0, *, iteration: int = 1) -> Request:
    """A request in a decode, with so many tokens in its KV cache."""
    request = Request(index, 0.0, context, 100, num_decodes=100)
    request.num_output_tokens = iteration
    request.is_prefill = False
    request.num_new_tokens = 1
    request.num_computed_tokens = context
    return request


def iterations(result) -> list[tuple[int, int, float, float]]:
    """The log of a run: (request, iteration, start, end), in order of coming back."""
    request, number, _, start, end = result.tables["iterations"].values
    return list(zip(request, number, start, end, strict=True))


def counts(**some: int) -> dict[str, int]:
    """The counts of requests in a summary, 0 but for those given."""
    names = ("arrived", "completed", "rejected", "failed", "cancelled", "in_flight", "waiting")
    return dict.fromkeys((*names, "restarted"), 0) | some


def reasons(**some: int) -> dict[str, int]:
    """How often requests were rejected for which reason, 0 but for those given."""
    return dict.fromkeys(("flow", "length", "kv", "nodes", "late"), 0) | some
