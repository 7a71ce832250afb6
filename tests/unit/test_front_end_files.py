"""Several front ends in scenario files, generated clusters, pictures, results and real clusters."""

import pytest
from scenario_data import CLUSTER

from helixsim.cluster import FrontEnd, Nic
from helixsim.drawing.picture import placement_picture
from helixsim.drawing.placement_figure import placement_figure
from helixsim.drawing.save import drawing_bytes
from helixsim.errors import ScenarioError
from helixsim.scenario.cluster_generator import generate_cluster
from helixsim.scenario.cluster_spec import ClusterSpec
from helixsim.scenario.generator_spec import GeneratorSpec
from helixsim.scenario.scenario_text import scenario_rows

TEN = "10 Gbit/s"
NIC = Nic(1.25e9, 1.25e9)
TWO = [{"nic": TEN}, {"nic": TEN, "region": "east", "share": 0.25}]
SHARED = [TWO[0] | {"share": 0.75}, TWO[1]]


def test_one_entry_of_a_list_is_the_coordinator(load):
    mapping = load({"cluster.coordinator": {"nic": TEN}})
    listed = load({"cluster.coordinator": [{"nic": TEN}]})
    assert listed.cluster == mapping.cluster
    assert listed.cluster.front_ends == (FrontEnd(NIC),)


def test_front_ends_are_named_after_their_regions_and_share_the_requests(load):
    plain = [{"nic": TEN}, {"nic": TEN, "region": "east"}]
    assert load({"cluster.coordinator": plain}).cluster.front_ends == (
        FrontEnd(NIC, "default", "front-end-default", 0.5),
        FrontEnd(NIC, "east", "front-end-east", 0.5),
    )
    named = [SHARED[0] | {"name": "home"}, SHARED[1]]
    front_ends = load({"cluster.coordinator": named}).cluster.front_ends
    assert [(each.name, each.share) for each in front_ends] == [
        ("home", 0.75),
        ("front-end-east", 0.25),
    ]


def test_a_scenario_says_how_many_front_ends_it_has(load):
    rows = dict(scenario_rows(load({"cluster.coordinator": SHARED})))
    assert rows["cluster"].endswith("2 regions, 2 front ends")
    assert dict(scenario_rows(load()))["cluster"].endswith("2 regions")


def test_coordinator_stands_for_the_first_front_end_in_links(load):
    own = {"between": ["coordinator", "far-1"], "bandwidth": TEN, "latency": "7 ms"}
    links = [
        *(["coordinator", "big"], ["big", "a100-0"], ["a100-0", "a100-1"], ["a100-1", "a100-2"]),
        *(["a100-2", "a100-3"], ["a100-3", "a100-4"], ["a100-4", "far-0"], ["far-0", "far-1"]),
        *(["far-1", "front-end-default"], ["front-end-east", "big"], ["far-1", "front-end-east"]),
    ]
    scenario = load(
        {
            "cluster.coordinator": SHARED,
            "cluster.network.links": [own],
            "placement.links": links,
        }
    )
    network = scenario.cluster.network
    assert network.link("front-end-default", "far-1").latency_s == 0.007
    assert network.link("front-end-east", "far-1").latency_s == 0.001
    assert network.link("front-end-east", "big").latency_s == 0.05
    with pytest.raises(ScenarioError, match=r"links\[11\]: duplicate link from front-end-default"):
        load(
            {
                "cluster.coordinator": SHARED,
                "placement.links": [*links, ["front-end-default", "big"]],
            }
        )
    message = r"no route .* front end front-end-east .* leave out placement\.links"
    with pytest.raises(ScenarioError, match=message):
        load({"cluster.coordinator": SHARED, "placement.links": links[:-1]})
    with pytest.raises(ScenarioError, match=r"links\[11\].*are front ends"):
        between = ["front-end-east", "front-end-default"]
        own["between"] = between
        load(
            {
                "cluster.coordinator": SHARED,
                "cluster.network.links": [own],
                "placement.links": [*links, between],
            }
        )


@pytest.mark.parametrize(
    ("coordinator", "where", "what"),
    [
        (TWO, "coordinator", "give a share to every front end, or to none"),
        ([TWO[1], SHARED[0] | {"share": 0.5}], "coordinator", "add up to 0.75, not to 1"),
        ([{"nic": TEN}] * 2, r"coordinator\[1\].name", "duplicate front end 'front-end-default'"),
        (
            [{"nic": TEN}, {"nic": 1}],
            r"coordinator\[1\].nic",
            "is not a quantity|number and a unit",
        ),
        ([{"nic": TEN, "name": "sink"}], r"coordinator\[0\].name", "'sink' is reserved"),
        ({"nic": TEN, "name": "source"}, "coordinator.name", "'source' is reserved"),
        ({"nic": TEN, "share": 0.5}, "coordinator.share", "a single front end has all requests"),
        ([SHARED[0], SHARED[1] | {"name": "coordinator"}], r"\[1\].name", "for the first"),
        ([{"nic": TEN, "name": "big"}], r"nodes\[0\].name", "'big' is the name of a front end"),
        ([], "coordinator", "at least 1"),
        ("here", "coordinator", "keys and values"),
    ],
)
def test_mistakes_are_named_with_their_place(load, coordinator, where, what):
    with pytest.raises(ScenarioError, match=rf"cluster\.{where}: .*({what})|{where}: .*({what})"):
        load({"cluster.coordinator": coordinator})


def test_a_generated_cluster_has_front_ends():
    settings = {
        "coordinator": SHARED,
        "regions": {"default": {"A100": 2}, "east": {"T4": 1}},
        "network": CLUSTER["network"],
    }
    spec = GeneratorSpec.model_validate(settings)
    for explicit in (False, True):
        cluster = generate_cluster(spec, explicit_links=explicit)
        assert cluster["coordinator"] == [
            {"name": "front-end-default", "nic": "1.25 GB/s", "share": 0.75},
            {"name": "front-end-east", "nic": "1.25 GB/s", "region": "east", "share": 0.25},
        ]
        again = ClusterSpec.model_validate(cluster)
        assert len(again.coordinator) == 2


def test_a_picture_names_the_front_ends_and_their_shares(load):
    picture = placement_picture(load({"cluster.coordinator": SHARED}))
    assert picture.front_ends == ("front-end-default", "front-end-east")
    out, back = (
        [link.names[place] for edge in picture.edges for link in edge.links if end(edge) == -1]
        for place, end in ((0, lambda edge: edge.source), (1, lambda edge: edge.target))
    )
    assert sorted(out) == sorted(back) == ["front-end-default", "front-end-east"]
    svg = drawing_bytes(placement_figure(picture), ".svg").decode()
    assert "2 front ends" in svg
    assert "Share of each front end: front-end-default 75%, front-end-east 25%." in svg
