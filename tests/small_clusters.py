"""Small random clusters, and all of their placements: what a search can be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations_with_replacement, product
from random import Random

from builders import HOST, capacity, make_machine_type, make_scenario, offline

from helixsim.metrics.summary import figures_of
from helixsim.models.simulation import simulate
from helixsim.placement.placement import Placement
from helixsim.planner.problem import PlanningProblem
from helixsim.planner.simulated.alike import alike_nodes
from helixsim.planner.simulated.allowed import on_a_route
from helixsim.profiles.machine import LatencyProfile
from helixsim.scenario.resolved import Scenario

RATE = "decode_tokens_per_s"


def random_cluster(
    seed: int, *, num_layers: int = 3, num_types: int = 3, each: int = 2, duration_s: float = 30.0
) -> Scenario:
    """A cluster of a few machine types, in one region or two, that serves requests of all lengths.

    A slow link takes about as long for a prompt as a machine does.
    """
    rng = Random(f"small cluster {seed}")
    types = {}
    while sum(kind.profiles["toy"].max_layers for kind in types.values()) < num_layers:
        types = {
            f"{letter}{number}": kind
            for letter in "abcd"[:num_types]
            for kind in [_machine_type(letter, num_layers, rng)]
            for number in range(each)
        }
    region = {letter: rng.choice(("here", "there")) for letter in "abcd"} | {HOST: "here"}
    slow = (8 * 20 / rng.uniform(0.02, 0.2), rng.uniform(0.0, 0.03))
    names = [*types, HOST]
    links = {
        (a, b): (1e6, 0.001) if region.get(a[0], "here") == region.get(b[0], "here") else slow
        for a in names
        for b in names
        if a != b
    }
    lengths = [(rng.randint(4, 60), rng.randint(4, 40)) for _ in range(40)]
    scenario = make_scenario(
        dict.fromkeys(types, (0, num_layers)),
        types=types,
        links=links,
        nics=dict.fromkeys(names, 1e7),
        workload=offline(lengths, initial_requests=4),
        duration_s=duration_s,
        warmup_s=duration_s / 6,
    )
    scheduler = replace(scenario.scheduler, flow_split="balanced")
    return replace(scenario, placement=None, scheduler=scheduler)


def _machine_type(name: str, num_layers: int, rng: Random):
    room = rng.randint(1, num_layers)
    token_s = 10 ** rng.uniform(-2.9, -2.2)
    decode_s = 10 ** rng.uniform(-2.3, -1.6)
    return make_machine_type(
        name,
        room,
        room=capacity(kv_token_layers=rng.randint(300, 2000)),
        prefill=LatencyProfile((0, 1000), (0.0, 1000 * token_s)),
        decode=LatencyProfile((0, 1, 100), (0.0, decode_s, 4 * decode_s)),
    )


def all_placements(problem: PlanningProblem) -> Iterator[dict[int, tuple[int, int]]]:
    """Every placement in which all nodes are on a route, one of each set of alike nodes exchanged.

    Nodes start where others end, as in all placements that the planner proposes.
    """
    num_layers = problem.num_layers
    classes = alike_nodes(problem).members
    held = []
    for members in classes:
        room = problem.max_layers(members[0])
        spans = [
            (start, end)
            for start in range(num_layers)
            for end in range(start + 1, min(num_layers, start + room) + 1)
        ]
        held.append(list(combinations_with_replacement([None, *spans], len(members))))
    for spans in product(*held):
        nodes = chain.from_iterable(classes)
        ranges = {
            node: span
            for node, span in zip(nodes, chain.from_iterable(spans), strict=True)
            if span is not None
        }
        if ranges and on_a_route(ranges, num_layers) == ranges:
            yield ranges


def served(scenario: Scenario, placement: Placement) -> float:
    """Decode tokens per second of a placement, with the scenario's seed."""
    summary = simulate(replace(scenario, placement=placement)).summary
    return figures_of(summary, (RATE,))[RATE]
