"""Pictures: what they hold, and that they are the same every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import networkx as nx
import pytest
from builders import make_scenario
from scenario_data import PLACEMENT

from helixsim.drawing import lanes
from helixsim.drawing.canvas import text_width, wrapped
from helixsim.drawing.captions import common_prefix, rate_text, short_name
from helixsim.drawing.front import front_figure
from helixsim.drawing.picture import bare_picture, placement_picture, solve
from helixsim.drawing.placement_figure import placement_figure
from helixsim.drawing.save import drawing_bytes, save_drawing
from helixsim.drawing.style import BOUND, type_colours
from helixsim.errors import InputError, OutputError, PlacementError
from helixsim.placement.cut_text import names_text
from helixsim.placement.export import graph_text, node_flow, to_networkx
from helixsim.placement.placement import Placement
from helixsim.scenario.scheduler_settings import SchedulerSettings

SVG = "{http://www.w3.org/2000/svg}"


def picture_of(load, changes=None):
    return placement_picture(load(changes))


def svg_of(drawing):
    return drawing_bytes(drawing, ".svg").decode()


def parsed(svg):
    return ET.fromstring(svg)  # noqa: S314  (we have written it)


def texts(svg):
    return [node.text for node in parsed(svg).iter(f"{SVG}text")]


def tips(svg):
    groups = parsed(svg).iter(f"{SVG}g")
    return {g.get("id"): t.text for g in groups if (t := g.find(f"{SVG}title")) is not None}


# -- what is seen


def test_lanes_go_from_the_first_layer_to_the_last(load):
    picture = picture_of(load)
    assert [lane.first.name for lane in picture.lanes] == list(PLACEMENT["layers"])
    assert picture.caption == (
        "Max flow 762.8 tokens/s at typical batches, bound by 1 link (a100-4 → far-0).",
        "Drawn is the balanced split of the flow, which requests follow.",
    )
    assert [edge.bounds for edge in picture.edges if edge.source == 5] == [True]
    crossing = {(e.source, e.target) for e in picture.edges if e.crosses_regions}
    assert crossing == {(5, 6), (7, lanes.COORDINATOR_LANE)}


def test_the_flow_that_requests_follow_is_drawn():
    """Two equal nodes where one is enough: the balanced split uses each by half."""
    layers = {"first": (0, 1), "one": (1, 2), "other": (1, 2), "last": (2, 3)}
    published = make_scenario(layers, requests=[(0.0, 10, 4)])
    balanced = replace(published, scheduler=SchedulerSettings(flow_split="balanced"))

    def shares(scenario):
        topology, flow, _ = solve(scenario)
        return [node_flow(topology, flow, node) / flow.tokens_per_s for node in (1, 2)]

    assert sorted(shares(published)) == pytest.approx([0, 1])
    assert shares(balanced) == pytest.approx([0.5, 0.5], abs=0.02)
    drawn = placement_picture(balanced)
    assert drawn.caption[-1] == "Drawn is the balanced split of the flow, which requests follow."
    assert drawn.flow_tokens_per_s == placement_picture(published).flow_tokens_per_s
    swarm = replace(published, scheduler=SchedulerSettings(policy="swarm"))
    assert "the routing policy is swarm" in placement_picture(swarm).caption[-1]


def test_what_layers_have_together_is_summed_over_holders(load):
    layers = picture_of(load).layers
    assert layers.holders["A100"] == [1] * 70 + [0] * 10
    assert layers.holders["L4"] == [0] * 66 + [1] * 14
    assert layers.kv_tokens["L4"][70] == 250_144
    assert layers.tokens_per_s["A100"][0] == pytest.approx(1987.48, abs=0.01)


def test_nodes_that_hold_nothing_are_listed(load):
    nodes = [{"type": "A100", "count": 8}, {"type": "L4", "count": 2, "name": "far-{i}"}]
    layers = {f"a100-{i}": [10 * i, 10 * i + 10] for i in range(8)}
    changes = {"cluster.nodes": nodes, "placement": {"layers": layers}}
    assert picture_of(load, changes).notes == ("Unused: 2 x L4 (far-0, far-1).",)


def test_a_scenario_without_a_placement_is_refused(load):
    with pytest.raises(PlacementError, match="mine: the scenario has no placement to show"):
        picture_of(load, {"placement": ...})


def test_many_nodes_that_are_alike_share_lanes(load):
    nodes = [{"type": "A100", "count": 48}, {"type": "L4", "count": 40, "region": "east"}]
    layers = {f"a100-{i}": [i % 4 * 10, i % 4 * 10 + 10] for i in range(48)}
    layers |= {f"l4-{i}": [40 + i % 10 * 4, 44 + i % 10 * 4] for i in range(40)}
    changes = {"cluster.nodes": nodes, "placement": {"layers": layers}}
    picture = picture_of(load, changes)
    assert [len(lane.nodes) for lane in picture.lanes] == [12] * 4 + [4] * 10
    assert {edge.source for edge in picture.edges} == set(range(-1, 14))
    total = sum(e.flow_tokens_per_s for e in picture.edges if e.source == lanes.COORDINATOR_LANE)
    assert total == pytest.approx(picture.flow_tokens_per_s)
    svg = svg_of(placement_figure(picture))
    assert {"12 x A100", "4 x L4"} <= set(texts(svg))
    assert tips(svg)["lane-0"].startswith("12 nodes: a100-0, a100-4, ")


def test_a_placement_alone_shows_layers_only():
    picture = bare_picture(Placement({"b": (3, 5), "a": (0, 4)}), "mine")
    assert (picture.num_layers, picture.edges) == (5, ())
    svg = svg_of(placement_figure(picture))
    assert {"a", "b", "4", "layers"} <= set(texts(svg))
    assert "used" not in texts(svg)
    assert any("No cluster is given" in text for text in texts(svg))
    with pytest.raises(PlacementError, match=r"mine: layers\.a: \[4, 4\] is not a range"):
        bare_picture(Placement({"a": (4, 4)}), "mine")


# -- files


def test_svg_names_everything(load):
    svg = svg_of(placement_figure(picture_of(load)))
    assert {*PLACEMENT["layers"], "A100", "east", "763 of 2,865", "27%"} <= set(texts(svg))
    tip = tips(svg)
    assert tip["lane-5"].splitlines() == [
        "a100-4",
        "A100, region default",
        "layers 60 to 69 (10)",
        "763 of 2,865 tokens/s, 27% used",
        "KV cache: 421,296 tokens",
    ]
    assert tip["flow-5-6"].splitlines() == [
        "a100-4 → far-0",
        "763 of 763 tokens/s",
        "latency 50 ms",
        "between regions",
        "bottleneck",
    ]
    assert len(re.findall(f"stroke: {BOUND}", svg)) == 3  # the link, its legend, the line of flow
    identifiers = re.findall(r' id="([^"]+)"', svg)
    assert len(identifiers) == len(set(identifiers))


def test_html_needs_nothing_else(load):
    page = drawing_bytes(placement_figure(picture_of(load)), ".html").decode()
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>mine: llama2-70b on 6 x A100, 2 x L4</title>" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert not re.search(r"url\((?!#)|@import|<link|fetch\(", page)
    assert "bound by 1 link (a100-4 → far-0)" in page


def test_names_cannot_break_a_page():
    picture = bare_picture(Placement({"<b>&x": (0, 2)}), "<script>alert(1)</script>")
    page = drawing_bytes(placement_figure(picture), ".html").decode()
    assert "<script>alert" not in page
    assert "<b>" not in page


def test_a_picture_is_drawn_the_same_twice(load):
    picture = picture_of(load)
    one, other = placement_figure(picture), placement_figure(picture)
    for suffix in (".svg", ".png"):
        assert drawing_bytes(one, suffix) == drawing_bytes(other, suffix)


def test_a_drawing_is_saved_whole_and_over_nothing(tmp_path):
    drawing = placement_figure(bare_picture(Placement({"a": (0, 2)}), "mine"))
    file = tmp_path / "x.svg"
    save_drawing(drawing, file)
    before = file.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        save_drawing(drawing, file)
    save_drawing(drawing, file, overwrite=True)
    assert file.read_bytes() == before
    with pytest.raises(OutputError, match=r"x\.pdf: pictures are written as \.png, \.svg, \.html"):
        save_drawing(drawing, tmp_path / "x.pdf")
    assert list(tmp_path.iterdir()) == [file]


# -- texts and colours


def test_long_names_are_shortened():
    names = ["compute_node_2", "compute_node_21"]
    assert common_prefix(names) == "compute_node_"
    assert [short_name(name, "compute_node_") for name in names] == ["…2", "…21"]
    assert common_prefix(["a100-0", "a100-1"]) == ""
    assert common_prefix(["alone_in_the_world"]) == ""
    assert short_name("a-very-long-name-of-a-machine") == "a-very-lo…a-machine"


def test_numbers_are_short():
    assert [rate_text(value) for value in (0.0, 0.12345, 12.345, 1234.5)] == [
        "0",
        "0.123",
        "12.3",
        "1,234",
    ]
    assert names_text([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, and 2 more"


def test_texts_are_broken_between_words():
    text = "one two three 4 x T4 and more"
    lines = wrapped(text, 9, 0.8)
    assert " ".join(lines) == text
    assert all(text_width(line, 9) <= 0.8 for line in lines)
    assert any("4 x T4" in line for line in lines)


def test_types_keep_their_colours():
    few, many = type_colours(["T4", "A100"]), type_colours(["A100", "mine", "V100", "T4"])
    assert (few["T4"], few["A100"]) == (many["T4"], many["A100"])
    assert len(set(many.values())) == 4
    assert BOUND not in type_colours([str(i) for i in range(20)]).values()


# -- the graph


def test_the_graph_has_all_that_is_known(load):
    topology, flow, _ = solve(load())
    graph = to_networkx(topology, flow)
    assert graph.graph["llm"] == "llama2-70b"
    assert graph.graph["max_flow_tokens_per_s"] == flow.tokens_per_s
    node = graph.nodes["far-0"]
    assert (node["type"], node["region"]) == ("L4", "east")
    assert (node["start_layer"], node["end_layer"]) == (66, 73)
    assert node["capacity_tokens_per_s"] == pytest.approx(996.04, abs=0.01)
    assert node["flow_tokens_per_s"] == pytest.approx(flow.tokens_per_s)
    assert graph.nodes["coordinator"]["region"] == "default"
    edge = graph.edges["a100-4", "far-0"]
    assert edge["bandwidth_bytes_per_s"] == 100e6 / 8
    assert edge["latency_s"] == 0.05
    assert edge["capacity_tokens_per_s"] == pytest.approx(12.5e6 / 16386)
    assert edge["flow_tokens_per_s"] == pytest.approx(flow.tokens_per_s)
    assert graph.number_of_edges() == len(topology.links)


def test_the_graph_survives_its_files(load, tmp_path):
    import json

    topology, flow, _ = solve(load())
    graph = to_networkx(topology, flow)
    file = tmp_path / "x.graphml"
    file.write_text(graph_text(graph, ".graphml"), "utf-8")
    data = json.loads(graph_text(graph, ".json"))
    for found in (nx.read_graphml(file), nx.node_link_graph(data, edges="edges")):
        assert dict(found.nodes(data=True)) == dict(graph.nodes(data=True))
        assert list(found.edges(data=True)) == list(graph.edges(data=True))
        assert found.graph.items() >= graph.graph.items()


# -- fronts


def candidate(label, latency, throughput, **more):
    return {
        "label": label,
        "decode_latency_s_mean": latency,
        "decode_tokens_per_s": throughput,
    } | more


def test_a_front_names_what_stands_out():
    points = [
        candidate("fast", 1.0, 100.0, on_front=True),
        candidate("much", 2.0, 200.0, on_front=True, chosen=True),
        candidate("neither", 1.9, 120.0, on_front=False),
        candidate("published", 1.8, 150.0),
    ]
    drawing = front_figure(points, title="mine", reference="published")
    svg = svg_of(drawing)
    assert {"mine", "fast", "much", "published"} <= set(texts(svg))
    assert "neither" not in texts(svg)
    assert tips(svg)["point-1"].splitlines() == [
        "much",
        "200.0 decode tokens/s",
        "2.000 s a decode",
        "chosen",
        "on the front",
    ]
    assert drawing.description == (
        "4 candidates, 2 of them on the front; star: chosen, 200.0 tokens/s; "
        "diamond: published, 150.0 tokens/s"
    )


def test_a_front_shows_how_far_runs_scatter():
    points = [
        candidate("a", 1.0, 100.0, on_front=True, decode_tokens_per_s_error=1.5),
        candidate("b", 2.0, 200.0, decode_latency_s_mean_error=0.02),
        candidate("stopped", 3.0, 150.0),
    ]
    drawing = front_figure(points)
    assert tips(svg_of(drawing))["point-0"].splitlines()[1] == "100.0 ± 1.5 decode tokens/s"
    assert tips(svg_of(drawing))["point-1"].splitlines()[2] == "2.000 ± 0.02 s a decode"
    assert tips(svg_of(drawing))["point-2"].splitlines()[1] == "150.0 decode tokens/s"
    bars = [bar for axes in drawing.figure.axes for bar in axes.containers]
    assert len(bars) == 2
    low, high = bars[0].lines[2][1].get_segments()[0][:, 1]
    assert (low, high) == (98.5, 101.5)
    assert drawing.description.endswith("bars: one standard deviation")


def test_labels_of_a_front_do_not_cover_each_other():
    close = [candidate(f"c{i}", 1 + 1e-4 * i, 100 + 1e-3 * i, on_front=True) for i in range(20)]
    named = set(texts(svg_of(front_figure([*close, candidate("far", 9.0, 50.0)]))))
    assert len(named & {point["label"] for point in close}) == 1


def test_a_single_candidate_can_be_drawn():
    assert "only" in texts(svg_of(front_figure([candidate("only", 1.0, 5.0, on_front=True)])))


def test_a_front_refuses_what_it_cannot_draw():
    with pytest.raises(InputError, match="no candidates"):
        front_figure([])
    with pytest.raises(InputError, match=r"points\[0\]: the key decode_tokens_per_s is missing"):
        front_figure([{"label": "a", "decode_latency_s_mean": 1.0}])
    with pytest.raises(InputError, match="no point is labelled 'b'"):
        front_figure([candidate("a", 1.0, 2.0)], reference="b")
