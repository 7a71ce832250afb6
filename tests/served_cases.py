"""Random small clusters, placements and loads, and what they serve: to be held against bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

from builders import HOST, fitting_pairs, iterations, make_scenario, offline

from helixsim import simulate
from helixsim.physics.engine import EngineCosts, GpuCosts
from helixsim.planner.problem import planning_problem
from helixsim.planner.served.request_mix import RequestMix
from helixsim.planner.served_bound import served_bound, served_bound_of_placement
from helixsim.profiles.machine import (
    Capacity,
    LatencyProfile,
    MachineProfile,
    MachineType,
    PlannerHints,
)
from helixsim.profiles.operators import (
    AttentionTable,
    LayerTables,
    OperatorCurve,
    OperatorTables,
)
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.scheduler_settings import PRESETS

POLICIES = ("maxflow", "maxflow", "adaptive", "swarm", "random", "least_kv")


@dataclass(frozen=True)
class Served:
    """What a run served in its window, and the requests of the window as means.

    `decodes_per_s` is already over the window and the longest pass, so that no pass that counts
    has begun before; `in_flight_share` is how far a route's own mix of prompts and decodes may be
    from that of all.
    """

    decodes_per_s: float
    mix: RequestMix
    in_flight_share: float


def random_case(seed: int) -> Scenario:
    """A cluster of 1 to 5 nodes with a placement under load, in any physics and scheduling."""
    rng = Random(seed)
    num_layers = rng.randint(2, 6)
    layers = _placement(rng, num_layers)
    kinds = [_machine_type(rng, f"kind{n}", num_layers) for n in range(rng.randint(1, 2))]
    links = {
        pair: (rng.choice((1e3, 1e4, 1e9)), rng.choice((0.001, 0.02, 0.1)))
        for pair in fitting_pairs(layers, num_layers)
    }
    if rng.random() < 0.5:  # only where nodes start where others end
        aligned = {
            (a, b): value
            for (a, b), value in links.items()
            if HOST in (a, b) or layers[a][1] == layers[b][0]
        }
        if {a for a, _ in aligned} >= set(layers):  # no node is a dead end
            links = aligned
    pairs = [
        (rng.choice((3, 20, 60)), rng.choice((4, 20, 50))) for _ in range(rng.choice((1, 1, 3)))
    ]
    scenario = make_scenario(
        layers,
        types={name: rng.choice(kinds) for name in layers},
        links=links,
        nics=dict.fromkeys((*layers, HOST), rng.choice((3e3, 1e4, 1e9))),
        policy=rng.choice(POLICIES),
        workload=offline(
            pairs,
            mean_prompt_tokens=round(fmean(prompt for prompt, _ in pairs)),
            mean_output_tokens=round(fmean(output for _, output in pairs)),
            initial_requests=rng.choice((3, 20, 60)),
        ),
        duration_s=120.0,
        warmup_s=30.0,
        seed=seed,
    )
    if rng.random() < 0.3:
        scenario = replace(scenario, scheduler=PRESETS["tuned"])
    if rng.random() < 0.6:
        scenario = replace(scenario, physics="calibrated", engine=_engine(rng))
    return scenario


def _placement(rng: Random, num_layers: int) -> dict[str, tuple[int, int]]:
    layers, end = {}, 0
    while end < num_layers:  # a chain first, so that there is a route
        stop = rng.randint(end + 1, num_layers)
        layers[f"n{len(layers)}"] = (end, stop)
        end = stop
    spans = list(layers.values())
    for _ in range(rng.randint(0, 2)):
        start = rng.randrange(num_layers)
        other = (start, rng.randint(start + 1, num_layers))
        layers[f"n{len(layers)}"] = rng.choice([*spans, other])
    return layers


def _machine_type(rng: Random, name: str, num_layers: int) -> MachineType:
    speed = rng.choice((1.0, 2.0, 5.0))
    floor = rng.choice((0.002, 0.02, 0.1)) / speed
    each = rng.choice((1e-3, 5e-3)) / speed
    sizes = (0, 1, 8, 32, 100)
    decode = LatencyProfile(sizes, tuple(floor + each * n * rng.uniform(0.7, 1.4) for n in sizes))
    tokens = (0, 10, 50, 200)
    prefill = LatencyProfile(
        tokens, tuple((floor if n else 0.0) + each * n * rng.uniform(0.3, 1.2) for n in tokens)
    )
    memory = rng.choice((2000, 5000, 50_000))
    capacities = {
        k: Capacity(
            kv_token_layers=memory - k * memory // (2 * num_layers),
            max_prompts=rng.choice((1, 4, 100)),
            max_prompt_tokens=rng.choice((64, 200)),
            max_decode_tokens=rng.choice((4, 16, 100)),
            max_decode_context=rng.choice((500, 10**6)),
        )
        for k in range(1, num_layers + 1)
    }
    profile = MachineProfile(
        name,
        "toy",
        prefill,
        decode,
        capacities,
        num_layers,
        PlannerHints(1, 1, 1.0),
        _operators(rng, num_layers) if rng.random() < 0.3 else None,
    )
    return MachineType(name, 1e9, 1e12, 1e9, {"toy": profile})


def _operators(rng: Random, num_layers: int) -> OperatorTables:
    """Tables with one or two kinds of layers, which the calibrated physics uses."""

    def curve(floor: float, each: float) -> OperatorCurve:
        sizes = (1, 16, 128)
        return OperatorCurve(sizes, tuple(floor + each * n * rng.uniform(0.8, 1.2) for n in sizes))

    def attention(each: float, per_context: float) -> AttentionTable:
        axes = ((0, 32, 128), (0, 64), (0, 1, 32), (8, 128))
        return AttentionTable(
            *axes,
            tuple(
                each * chunk * (1 + before / 64) + per_context * number * context
                for chunk in axes[0]
                for before in axes[1]
                for number in axes[2]
                for context in axes[3]
            ),
        )

    floor, each = rng.choice((0.002, 0.05)), rng.choice((1e-4, 2e-3))
    kinds = tuple(
        LayerTables(curve(floor, each), attention(each / 4, rng.choice((1e-6, 1e-4))))
        for _ in range(rng.choice((1, 2)))
    )
    return OperatorTables(
        kinds=kinds,
        embedding=curve(1e-4, 1e-6),
        final_norm=curve(1e-4, 1e-6),
        head=curve(1e-3, 1e-5),
        kind_of_layer=tuple(rng.randrange(len(kinds)) for _ in range(num_layers)),
        decode_skew=rng.choice((0.0, 0.5)),
    )


def _engine(rng: Random) -> EngineCosts:
    return EngineCosts(
        scheduler=rng.choice(("prototype", "prototype", "vllm")),
        batching=rng.choice(("separate", "mixed")),
        max_num_batched_tokens=rng.choice((64, 512)),
        max_num_seqs=rng.choice((4, 64)),
        per_sequence_overhead=rng.choice((0.0, 1e-3)),
        per_prompt=rng.choice((0.0, 1e-2)),
        per_kv_block=rng.choice((0.0, 1e-4)),
        profile_context_tokens=rng.choice((10, 1000)),
        copy_bandwidth=rng.choice((1e4, 1e12)),
        send_bandwidth=rng.choice((1e4, 1e12)),
        other_machine_types=GpuCosts(
            prefill_scale=rng.choice((0.8, 1.0)),
            per_layer_and_pass=rng.choice((0.0, 1e-2)),
            kv_read_bandwidth=rng.choice((None, 1e5)),
        ),
    )


def served(scenario: Scenario) -> Served | None:
    """Simulate; None if too little came back in the window to speak of means."""
    result = simulate(scenario, record_iterations=True)
    window_s = result.summary["window_end_s"] - result.summary["window_start_s"]
    requests = result.tables["requests"].as_dict()
    length = dict(zip(requests["request"], requests["prompt_tokens"], strict=True))
    inside = [
        (length[request], number, end - start)
        for request, number, start, end in iterations(result)
        if request in length
        and result.summary["window_start_s"] <= end <= result.summary["window_end_s"]
    ]
    decodes = [(prompt, number) for prompt, number, _ in inside if number]
    prompts = [prompt for prompt, number, _ in inside if not number]
    if len(prompts) < 20 or not decodes:
        return None
    active = result.summary["requests"]["in_flight"]
    expected = scenario.workload.mean_output_tokens
    mix = RequestMix(
        prompt_tokens=fmean(prompts),
        decodes=len(decodes) / len(prompts),
        longest_prompt=max(prompts),
        context=fmean(prompt + number - 1 for prompt, number in decodes),
        booked=fmean(prompt + expected for prompt, _ in decodes),
        booked_prefill=sum(prompt * (prompt + expected) for prompt in prompts) / sum(prompts),
    )
    longest_s = max(seconds for _, _, seconds in inside)
    return Served(len(decodes) / (window_s + longest_s), mix, active / len(prompts))


@dataclass(frozen=True)
class Held:
    """What was served, and its bounds, all in decodes per second."""

    decodes_per_s: float
    placement_bound: float
    cluster_bound: float
    in_flight_share: float


def held_against_bounds(scenario: Scenario) -> Held | None:
    """Simulate, and bound what was served for the requests of the window; None as :func:`served`.

    Bounds hold for each route's own mix of prompts and decodes. In a short window that may differ
    between routes; `in_flight_share` says by how much at most.
    """
    found = served(scenario)
    if found is None:
        return None
    problem = planning_problem(scenario, partial_inference=True)
    return Held(
        found.decodes_per_s,
        served_bound_of_placement(scenario, found.mix).decode_tokens_per_s,
        served_bound(scenario, problem, found.mix).decode_tokens_per_s,
        found.in_flight_share,
    )
