"""Random small scenarios.

Structure, lengths and limits are hypothesis's to choose, and to shrink. Physical quantities come
from a seeded stream: no two are alike, so that no two things happen at once but by design.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from builders import HOST, capacity, fitting_pairs, make_machine_type, make_scenario, offline
from hypothesis import strategies as st

from helixsim.control.node_schedulers.composition import NO_LIMITS, StepLimits
from helixsim.profiles.machine import Capacity, LatencyProfile, MachineType
from helixsim.scenario.resolved import Fault, Faults, Scenario
from helixsim.scenario.scheduler_settings import PRESETS
from helixsim.scenario.workload_values import Workload

KV_ADMISSIONS = ("expected", "exact")
POLICIES = ("maxflow", "swarm", "random", "shortest_queue", "least_kv", "prefix_aware")


@st.composite
def placements(draw: st.DrawFn, num_layers: int) -> dict[str, tuple[int, int]]:
    """One to three pipelines; nodes may also hold layers of the node before."""
    layers: dict[str, tuple[int, int]] = {}
    for _ in range(draw(st.integers(1, 3))):
        start = 0
        while start < num_layers:
            end = draw(st.integers(start + 1, num_layers))
            layers[f"n{len(layers)}"] = (draw(st.integers(max(0, start - 2), start)), end)
            start = end
    return layers


@st.composite
def rooms(draw: st.DrawFn) -> Capacity:
    return Capacity(
        kv_token_layers=draw(st.sampled_from([10**6, 3000, 800])),
        max_prompts=draw(st.integers(1, 3)),
        max_prompt_tokens=draw(st.integers(30, 100)),
        max_decode_tokens=draw(st.integers(1, 5)),
        max_decode_context=draw(st.integers(100, 300)),
    )


def machine_type(name: str, num_layers: int, room: Capacity, rng: Random) -> MachineType:
    return make_machine_type(
        name,
        num_layers,
        prefill=LatencyProfile((0, 10, 100), (0.0, rng.uniform(0.01, 0.1), rng.uniform(0.1, 1))),
        decode=LatencyProfile((0, 1, 10), (0.0, rng.uniform(0.005, 0.05), rng.uniform(0.05, 0.1))),
        room=room,
    )


@st.composite
def scenarios(
    draw: st.DrawFn,
    *,
    policies: tuple[str, ...] = POLICIES,
    drain: bool | None = None,
    **settings: object,
) -> Scenario:
    """Scenarios of all kinds, or only of those asked for; `settings` go to `make_scenario`."""
    num_layers = draw(st.integers(1, 6))
    layers = draw(placements(num_layers))
    lengths = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1))
    seed = draw(st.integers(0, 2**32))
    rng = Random(seed)
    activation_bytes = draw(st.sampled_from([8.0, 8e6]))
    least, most = 125 * activation_bytes, 12_500 * activation_bytes
    links = {
        pair: (rng.uniform(least, most), rng.uniform(0.001, 0.2))
        for pair in fitting_pairs(layers, num_layers)
    }
    types = {name: machine_type(name, num_layers, draw(rooms()), rng) for name in layers}
    requests: list[tuple[float, int, int]] | None = None
    workload: Workload | None = None
    if draw(st.booleans()):
        workload = offline(lengths, initial_requests=draw(st.integers(1, 12)))
    else:
        requests, at = [], 0.0
        for _ in range(draw(st.integers(1, 3))):
            for pair in lengths:
                at += rng.uniform(0, 0.5)
                requests.append((at, *pair))
    given: dict[str, object] = {
        "requests": requests,
        "workload": workload,
        "links": links,
        "nics": {name: rng.uniform(least, most) for name in (HOST, *layers)},
        "types": types,
        "policy": draw(st.sampled_from(policies)),
        "duration_s": draw(st.sampled_from([1.0, 4.0])),
        "drain": draw(st.booleans()) if drain is None else drain,
        "seed": seed,
        "activation_bytes": activation_bytes,
    }
    return make_scenario(layers, **(given | settings))  # type: ignore[arg-type]


@st.composite
def chains(draw: st.DrawFn) -> Scenario:
    """Max-flow scenarios in which all times are whole eighths: very much happens at once.

    Nodes stand one behind the other, each with one way in, so that ties between batches of
    different nodes, which nothing defines, change nothing.
    """
    num_layers = draw(st.integers(1, 5))
    layers: dict[str, tuple[int, int]] = {}
    start = 0
    while start < num_layers:
        end = draw(st.integers(start + 1, num_layers))
        layers[f"n{len(layers)}"] = (start, end)
        start = end
    eighth = LatencyProfile((0, 128), (0.0, 16.0))
    bandwidths, latencies = st.sampled_from([8.0, 16.0]), st.sampled_from([0.125, 0.25])
    lengths = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1))
    requests: list[tuple[float, int, int]] | None = None
    workload: Workload | None = None
    if draw(st.booleans()):
        workload = offline(lengths, initial_requests=draw(st.integers(1, 15)), spacing_s=0.125)
    else:
        requests, at = [], 0.0
        for pair in lengths:
            at += draw(st.integers(0, 4)) / 8
            requests.append((at, *pair))
    return make_scenario(
        layers,
        requests=requests,
        workload=workload,
        links={
            pair: (draw(bandwidths), draw(latencies)) for pair in fitting_pairs(layers, num_layers)
        },
        types={
            name: make_machine_type(
                name, num_layers, prefill=eighth, decode=eighth, room=draw(rooms())
            )
            for name in layers
        },
        duration_s=draw(st.sampled_from([4.0, 16.0])),
        drain=draw(st.booleans()),
        activation_bytes=0.0,
    )


@st.composite
def step_limits(draw: st.DrawFn) -> StepLimits:
    """No limits, the automatic ones, or some that are given."""
    return draw(
        st.sampled_from([NO_LIMITS, PRESETS["tuned"].step])
        | st.builds(
            StepLimits,
            max_prefill_tokens=st.none() | st.integers(1, 60),
            max_decodes=st.none() | st.integers(1, 4),
            max_wait_s=st.sampled_from([0.0, 0.001, 0.1]),
        )
    )


@st.composite
def troubled(draw: st.DrawFn, **settings: object) -> Scenario:
    """Scenarios with faults, a waiting room and chunks, or some of these."""
    scenario = draw(scenarios(**settings))
    assert scenario.placement is not None
    events = []
    for name in scenario.placement.layers:
        at = 0.0
        for _ in range(draw(st.integers(0, 2))):
            at += draw(st.floats(0, 5))
            duration = draw(st.none() | st.floats(0.01, 5))
            events.append(Fault(name, at, duration))
            if duration is None:
                break
            at += duration + 0.1  # its layers are loaded by then
    # Layers of some size: the attention of later chunks is reckoned by it.
    return replace(
        scenario,
        llm=replace(scenario.llm, layer_bytes=1.6e7),
        scheduler=replace(
            scenario.scheduler,
            prefill_chunk_tokens=draw(st.none() | st.integers(1, 40)),
            stream_chunks=draw(st.booleans()),
            step=draw(step_limits()),
            kv=replace(scenario.scheduler.kv, admission=draw(st.sampled_from(KV_ADMISSIONS))),
            max_waiting=draw(st.integers(0, 5)),
        ),
        faults=Faults(detection_s=draw(st.sampled_from([0.0, 0.1, 1.0])), events=tuple(events)),
    )


@st.composite
def fans(draw: st.DrawFn) -> Scenario:
    """Max-flow scenarios in which the coordinator must not look late.

    Several quick and slow nodes stand behind it, and what comes back comes over one slow link:
    some node idles, and waits for a decode that is on its way.
    """
    rng = Random(draw(st.integers(0, 2**32)))
    firsts = [f"n{number}" for number in range(draw(st.integers(2, 4)))]
    layers = dict.fromkeys(firsts, (0, 1)) | {"last": (1, 2)}
    seconds = {name: rng.choice([0.001, 0.01, 0.1, 1.0]) * rng.uniform(0.5, 2) for name in firsts}
    flat = {
        name: LatencyProfile((0, 1, 20), (0.0, each, 1.01 * each))
        for name, each in (seconds | {"last": rng.uniform(0.01, 0.05)}).items()
    }
    links = {
        pair: (rng.uniform(1e4, 1e5), rng.uniform(0.001, 0.01)) for pair in fitting_pairs(layers, 2)
    }
    links["last", HOST] = rng.uniform(20, 200), rng.uniform(0.001, 0.1)
    room = capacity(max_prompt_tokens=30, max_decode_tokens=10)
    lengths = st.tuples(st.integers(1, 3), st.integers(1, 40))
    at = sorted(rng.uniform(0, 0.3) for _ in range(draw(st.integers(2, 10))))
    return make_scenario(
        layers,
        requests=[(when, *draw(lengths)) for when in at],
        links=links,
        types={
            name: make_machine_type(name, 2, prefill=each, decode=each, room=room)
            for name, each in flat.items()
        },
        min_flow_share=0.0,
        duration_s=5.0,
    )
