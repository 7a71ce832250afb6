"""A scenario with several front ends in a real cluster: tokens pass the coordinator."""

import logging

from tiny_scenario import write_tiny_scenario

from helixreal.inventory import NodeEntry
from helixreal.launch import Launch
from helixsim import replay
from helixsim.metrics.output import OutputFolder

CLUSTER = {
    "coordinator": [
        {"nic": "10 Gbit/s", "region": "east"},
        {"nic": "10 Gbit/s", "region": "west"},
    ],
    "nodes": [
        {"type": "box", "name": "n0", "region": "east"},
        {"type": "box", "name": "n1", "region": "west"},
    ],
    "network": {
        "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
        "across": {"bandwidth": "10 Gbit/s", "latency": "20 ms"},
    },
}
LINKS = [
    *(["coordinator", "n0"], ["n0", "n1"], ["n1", "coordinator"]),
    *(["front-end-west", "n0"], ["n1", "front-end-west"]),
]


def test_all_requests_enter_at_the_coordinator_and_the_results_say_so(tmp_path, caplog):
    placement = {"layers": {"n0": [0, 4], "n1": [4, 8]}, "links": LINKS}
    file = write_tiny_scenario(
        tmp_path,
        cluster=CLUSTER,
        placement=placement,
        run={"duration": "4 s", "warmup": "0 s"},
    )
    launch = Launch.local(file, (), 0, NodeEntry(), 4.0)
    with caplog.at_level(logging.WARNING), launch.cluster() as cluster:
        launch.start(cluster)
        cluster.run_workload()
        result, recorded = cluster.result(), cluster.events.files(cluster.topology)
    names = [cluster.topology.name(machine) for machine in range(cluster.topology.num_machines)]
    assert names == ["n0", "n1", "front-end-east"]
    assert "front_end" not in result.requests
    (warning,) = [text for text in result.summary["warnings"] if "front ends" in text]
    assert "all requests entered at front-end-east" in warning and "front-end-west" in warning
    assert "at the sites of front-end-west, start `helixreal front-end`" in caplog.text
    # Its recording is replayed on the same scenario, with the coordinator alone.
    with OutputFolder(tmp_path / "run") as folder:
        result.write(folder, table_format="csv", more=recorded)
    replayed = replay(tmp_path / "run", file, warmup_s=0.0)
    assert replayed.scenario.cluster.front_end_names == ("front-end-east",)
    # From the east to the west and back: 1 + 20 + 20 ms.
    assert result.summary["decode_latency_s"]["p50"] > 0.041
