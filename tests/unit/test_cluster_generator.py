import time
from itertools import combinations, permutations

import pytest

from helixsim.errors import OutputError, ScenarioError
from helixsim.scenario.cluster_generator import cluster_file, generate_cluster
from helixsim.scenario.cluster_spec import ClusterSpec
from helixsim.scenario.files import shipped_folder
from helixsim.scenario.generator_spec import GeneratorSpec
from helixsim.scenario.load import load_scenario
from helixsim.yaml_files import yaml_text

GENERATOR = {
    "coordinator": {"nic": {"inbound": "3 GB/s", "outbound": "0.1 GB/s"}, "region": "users"},
    "regions": {"west": {"A100": 2, "T4": 3}, "east": {"T4": 2}},
    "network": {
        "within": {"bandwidth": {"mean": "10 Gbit/s", "spread": "1 Gbit/s"}, "latency": "1 ms"},
        "across": {
            "bandwidth": "100 Mbit/s",
            "latency": {"mean": "50 ms", "spread": "10 ms"},
        },
        "regions": [{"between": ["users", "east"], "bandwidth": "1 MB/s", "latency": "0.3 s"}],
    },
    "seed": 5,
}
HEAD = {"schema": 1, "kind": "generator"}


def generate(changes=None, **options):
    return generate_cluster(GeneratorSpec.model_validate(GENERATOR | (changes or {})), **options)


def test_a_generated_cluster_as_plain_data():
    assert generate() == {
        "coordinator": {"nic": {"inbound": "3 GB/s", "outbound": "100 MB/s"}, "region": "users"},
        "nodes": [
            {"name": "a100-0", "type": "A100", "region": "west"},
            {"name": "a100-1", "type": "A100", "region": "west"},
            {"name": "t4-0", "type": "T4", "region": "west"},
            {"name": "t4-1", "type": "T4", "region": "west"},
            {"name": "t4-2", "type": "T4", "region": "west"},
            {"name": "t4-3", "type": "T4", "region": "east"},
            {"name": "t4-4", "type": "T4", "region": "east"},
        ],
        "network": {
            "within": {
                "bandwidth": {"mean": "1.25 GB/s", "spread": "125 MB/s"},
                "latency": "1 ms",
            },
            "across": {
                "bandwidth": "12.5 MB/s",
                "latency": {"mean": "50 ms", "spread": "10 ms"},
            },
            "regions": [{"between": ["users", "east"], "bandwidth": "1 MB/s", "latency": "300 ms"}],
            "seed": 5,
        },
    }


def test_one_region_needs_no_name():
    changes = {"regions": None, "machines": {"L4": 1}, "coordinator": {"nic": "1 GB/s"}}
    changes["network"] = {"within": GENERATOR["network"]["within"]}
    found = generate(changes | {"node_name": "n{i}"})
    assert found["nodes"] == [{"name": "n0", "type": "L4"}]
    assert found["coordinator"] == {"nic": "1 GB/s"}


def test_shuffling_mixes_the_machines_as_the_seed_says():
    plain = [node["type"] + node["region"] for node in generate()["nodes"]]
    orders = [
        [
            node["type"] + node["region"]
            for node in generate({"shuffle": True, "seed": seed})["nodes"]
        ]
        for seed in range(5)
    ]
    assert all(sorted(found) == sorted(plain) for found in orders)
    assert len(set(map(tuple, orders))) > 1
    assert generate({"shuffle": True}) == generate({"shuffle": True})
    assert generate({"shuffle": True}, seed=2) == generate({"shuffle": True, "seed": 2})
    names = [node["name"] for node in generate({"shuffle": True, "node_name": "n{i}"})["nodes"]]
    assert names == [f"n{i}" for i in range(7)]


@pytest.fixture
def clusters(scenario_file, tmp_path):
    """The cluster of the generator above, by way of scenarios and files."""

    def load(cluster):
        changes = {"cluster": cluster, "placement": ...}
        return load_scenario(scenario_file(changes)).cluster

    spec = scenario_file(name="spec.yaml", base=HEAD | GENERATOR)
    for name, explicit in (("rules.yaml", False), ("links.yaml", True)):
        (tmp_path / name).write_text(cluster_file(spec, explicit_links=explicit))
    return {
        "inline": load({"generate": GENERATOR}),
        "generator file": load({"generate": "spec.yaml"}),
        "cluster file": load({"file": "rules.yaml"}),
        "explicit links": load({"file": "links.yaml"}),
    }


def test_a_cluster_is_the_same_inline_and_in_files(clusters):
    assert clusters["inline"] == clusters["generator file"] == clusters["cluster file"]


def test_explicit_links_are_those_of_the_rules(clusters):
    rules, explicit = clusters["inline"], clusters["explicit links"]
    assert explicit.nodes == rules.nodes
    assert len(explicit.network.links) == 8 * 7
    names = ["coordinator", *(node.name for node in rules)]
    for pair in permutations(names, 2):
        assert explicit.network.link(*pair) == rules.network.link(*pair)


def test_links_follow_the_regions(clusters):
    cluster = clusters["inline"]
    regions = {node.name: node.region for node in cluster} | {"coordinator": "users"}
    for pair in combinations(regions, 2):
        link = cluster.network.link(*pair)
        found = (link.bandwidth_bytes_per_s, link.latency_s)
        if {regions[name] for name in pair} == {"users", "east"}:
            assert found == (1e6, 0.3)
        elif len({regions[name] for name in pair}) == 1:
            assert 1.125e9 <= found[0] <= 1.375e9
            assert found[1] == 0.001
        else:
            assert found[0] == 12.5e6
            assert 0.04 <= found[1] <= 0.06


def test_pairs_without_a_rule_have_no_link():
    network = {"within": GENERATOR["network"]["within"]}
    found = generate({"network": network}, explicit_links=True)
    assert len(found["network"]["links"]) == 5 * 4 / 2 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machines": {"T4": 1}}, "give either machines or regions"),
        ({"regions": ...}, "give either machines or regions"),
        ({"regions.west.T4": 0}, r"regions\.west\.T4: should be greater than or equal to 1"),
        ({"regions.west.T4": 100_000}, "more than 100000 nodes"),
        ({"node_name": "n"}, r"node_name: must contain \{i\}"),
        ({"network.regions.0.between": ["users", "mars"]}, "no machine is in region 'mars'"),
        ({"network.seed": 1}, "unknown key"),
        ({"kind": "cluster"}, "kind: should be 'generator'"),
    ],
)
def test_a_mistake_in_a_generator_file_is_named(scenario_file, changes, message):
    file = scenario_file(changes, name="spec.yaml", base=HEAD | GENERATOR)
    with pytest.raises(ScenarioError, match=message) as caught:
        cluster_file(file)
    assert caught.value.file == str(file)


def test_a_mistake_in_an_inline_generator_is_named(load):
    with pytest.raises(ScenarioError, match=r"cluster\.generate\.node_name: must contain"):
        load({"cluster": {"generate": GENERATOR | {"node_name": "n"}}, "placement": ...})


BIG = GENERATOR | {"regions": {"west": {"T4": 600}, "east": {"L4": 400}}, "shuffle": True}


def test_a_thousand_nodes_are_quick(scenario_file):
    spec = scenario_file(name="spec.yaml", base=HEAD | BIG)
    scenario = scenario_file({"cluster": {"generate": BIG}, "placement": ...})
    start = time.process_time()
    text = cluster_file(spec)
    generated = time.process_time()
    cluster = load_scenario(scenario).cluster
    loaded = time.process_time()
    assert text.count("type:") == len(cluster) == 1000
    assert generated - start < 2
    assert loaded - generated < 2


def test_a_cluster_file_that_could_not_be_read_is_not_written(scenario_file, monkeypatch):
    monkeypatch.setattr("helixsim.scenario.cluster_generator.MAX_FILE_BYTES", 1000)
    spec = scenario_file(name="spec.yaml", base=HEAD | GENERATOR)
    with pytest.raises(OutputError, match="leave the links as rules"):
        cluster_file(spec, explicit_links=True)


@pytest.mark.parametrize(
    ("name", "mix", "num_regions"),
    [
        ("single24", {"A100": 4, "L4": 8, "T4": 12}, 1),
        ("geo24", {"A100": 4, "L4": 8, "T4": 12}, 4),
        (
            "het42",
            {"A100": 4, "V100": 6, "L4": 8, "L4x2": 4, "T4": 10, "T4x2": 6, "T4x4": 4},
            1,
        ),
    ],
)
def test_shipped_generators(load, name, mix, num_regions):
    file = shipped_folder() / "generators" / f"{name}.yaml"
    cluster = load({"cluster": {"generate": str(file)}, "placement": ...}).cluster
    assert cluster.machine_mix() == mix
    assert len({cluster.front_ends[0].region, *(node.region for node in cluster)}) == num_regions


def test_generated_text_is_a_cluster(scenario_file):
    body = generate()
    assert ClusterSpec.model_validate(body)
    spec = scenario_file(name="spec.yaml", base=HEAD | GENERATOR | {"source": "me"})
    assert cluster_file(spec) == yaml_text({"schema": 1, "kind": "cluster", "source": "me"} | body)
