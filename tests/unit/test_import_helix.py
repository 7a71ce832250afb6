import re
from pathlib import Path

import pytest

from helixsim.cluster import Link, Nic
from helixsim.errors import ImportHelixError, ScenarioError
from helixsim.scenario.helix_ini import UNITS, HelixIni
from helixsim.scenario.import_helix import import_helix, scenario_name
from helixsim.scenario.load import load_scenario
from helixsim.units import bytes_per_s, format_bytes_per_s, format_seconds, seconds
from helixsim.yaml_files import yaml_text

# Four A100 and one more that is not used, for the 60 layers of the 30B. ComputeNode-0 is
# compute_node_2.
LAYERS = [(0, 15), (15, 30), (30, 45), (45, 60)]
CLUSTER = "[NodeNames]\ntotal_compute_nodes=5\n" + "".join(
    f"\n[ComputeNode-{i}]\ntype=A100\nconnected_nodes=['source', 1, 2, 'sink']\n" for i in range(5)
)
MACHINES = """
# hardware
[SourceNode]
inbound_nic_speed = -1
[A100]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = 10 * gbps
disk_speed = 1 * gbps
vram_size = 40 * GB
"""
SOLUTION = "[Settings]\noffset=2\n\n[Solution]\n" + "".join(
    f"compute_node_{i + 2}={list(range(*layers))}\n" for i, layers in enumerate(LAYERS)
)
ENDS = [("source", "compute_node_2"), ("compute_node_5", "sink")] + [
    (f"compute_node_{i}", f"compute_node_{i + 1}") for i in (2, 3, 4)
]


def cluster_links(bandwidth="1000 * mbps", latency="1 * MilliSec"):
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    pairs += [("source", i) for i in range(5)] + [(i, "sink") for i in range(5)]
    return "".join(
        f"\n[Link-{a}-{b}]\nbandwidth={bandwidth}\nlatency={latency}\n" for a, b in pairs
    )


def used(bandwidth="1000.0 * mbps", latency="1.0 * MilliSec"):
    nodes = [f"compute_node_{i}" for i in (2, 3, 4, 5)]
    text = f"""
[Coordinator]
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps

[ComputeNodes]
names={nodes}
"""
    for node in nodes:
        text += f"""
[{node}]
vram_size=40000.0 * MB
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps
disk_speed=1000.0 * mbps
machine_type="A100"
kv_cache_capacity=725040
"""
    text += f"\n[Links]\nnames={[f'link_{a}_{b}' for a, b in ENDS]}\n"
    for a, b in ENDS:
        text += f"\n[link_{a}_{b}]\nin={a}\nout={b}\nlatency={latency}\nbandwidth={bandwidth}\n"
    return text


FULL = CLUSTER + cluster_links()
TEXTS = {"cluster": FULL, "machines": MACHINES, "solution": SOLUTION, "links": used()}


@pytest.fixture
def files(tmp_path):
    return {name: tmp_path / f"{name}.ini" for name in TEXTS}


@pytest.fixture
def run(files):
    """Import the files above, or others in their place."""

    def run(**texts):
        for name, text in (TEXTS | texts).items():
            files[name].write_text(text)
        return import_helix(**files, llm="llama1-30b")

    return run


@pytest.fixture
def load(run, tmp_path):
    def load(*overrides, **texts):
        file = tmp_path / "imported.yaml"
        file.write_text(yaml_text(run(**texts).document))
        return load_scenario(file, overrides)

    return load


def test_the_document(run):
    imported = run()
    assert imported.overcommitted == ()
    assert imported.document == {
        "schema": 1,
        "name": "imported",
        "llm": "llama1-30b",
        "cluster": {
            "coordinator": {"nic": "10 GB/s"},
            "nodes": [{"name": f"compute_node_{i}", "type": "A100"} for i in range(2, 7)],
            "network": {"within": {"bandwidth": "1 GB/s", "latency": "1 ms"}},
        },
        "placement": {
            "layers": {f"compute_node_{i + 2}": list(ends) for i, ends in enumerate(LAYERS)},
            "links": [
                ["coordinator", "compute_node_2"],
                ["compute_node_5", "coordinator"],
                ["compute_node_2", "compute_node_3"],
                ["compute_node_3", "compute_node_4"],
                ["compute_node_4", "compute_node_5"],
            ],
            "allow_overcommitted_layers": False,
        },
        "scheduler": {
            "preset": "published",
            "policy": "maxflow",
        },
        "workload": {
            "mode": "offline",
            "initial_requests": 20,
            "lengths": "azure-conversation",
            "arrivals": "azure-conversation",
            "mean_tokens_per_s": 700,
        },
        "physics": "paper",
        "run": {"seed": 0, "warmup": "0 s", "duration": "660 s"},
    }


def test_the_scenario_that_comes_of_it(load):
    scenario = load()
    assert scenario.cluster.coordinator_nic == Nic(1e10, 1e10)
    assert scenario.cluster.network.link("compute_node_2", "coordinator") == Link(
        "compute_node_2", "coordinator", 1e9, 0.001
    )
    assert [link[0] for link in scenario.placement.links[:2]] == ["coordinator", "compute_node_5"]


def test_what_differs_from_the_machine_type_is_written(run, load):
    links = used().replace("kv_cache_capacity=725040", "kv_cache_capacity=999", 1)
    links = links.replace("disk_speed=1000.0 * mbps", "disk_speed=2000.0 * mbps", 1)
    coordinator, machines = links.split("[compute_node_2]")
    machines = machines.replace("inbound_nic_speed=10000.0", "inbound_nic_speed=5000.0", 1)
    links = f"{coordinator}[compute_node_2]{machines}"
    hardware = MACHINES.replace("disk_speed = 1 *", "disk_speed = 3 *")
    document = run(links=links, machines=hardware).document
    assert document["cluster"]["nodes"][0] == {
        "name": "compute_node_2",
        "type": "A100",
        "nic": {"inbound": "5 GB/s", "outbound": "10 GB/s"},
        "disk": "2 GB/s",
        "kv_token_layers": 999,
    }
    assert document["cluster"]["nodes"][1] == {"name": "compute_node_3", "type": "A100"}
    assert document["cluster"]["nodes"][4]["disk"] == "3 GB/s"
    node = load(links=links, machines=hardware).cluster.node("compute_node_2")
    assert (node.nic, node.disk_bytes_per_s, node.kv_token_layers) == (Nic(5e9, 1e10), 2e9, 999)


def test_a_used_link_counts_more_than_the_clusters(load):
    links = used(bandwidth="7 * mbps", latency="51.00000000000001 * MilliSec")
    network = load(links=links).cluster.network
    there = network.link("compute_node_2", "compute_node_3")
    assert (there.bandwidth_bytes_per_s, there.latency_s) == (7e6, 51.00000000000001 * 0.001)
    back = network.link("compute_node_3", "compute_node_2")
    assert (back.bandwidth_bytes_per_s, back.latency_s) == (1e9, 0.001)
    assert network.link("coordinator", "compute_node_2").bandwidth_bytes_per_s == 7e6
    assert network.link("compute_node_2", "coordinator").bandwidth_bytes_per_s == 1e9


def test_a_cluster_need_not_link_all(load):
    network = load(cluster=CLUSTER).cluster.network
    assert network.link("compute_node_2", "compute_node_3").bandwidth_bytes_per_s == 1e9
    assert network.link("compute_node_3", "compute_node_2") is None


def test_overcommitted_nodes_are_told(run, load):
    solution = SOLUTION.replace(str(list(range(15))), str(list(range(20))))
    imported = run(solution=solution)
    assert imported.overcommitted == ("compute_node_2",)
    with pytest.raises(ScenarioError, match="20 layers of llama1-30b exceed max_layers"):
        load(solution=solution)
    scenario = load("placement.allow_overcommitted_layers=true", solution=solution)
    assert scenario.cluster.node("compute_node_2").kv_token_layers == 725040


def test_nodes_without_layers_are_left_out(run):
    solution = SOLUTION + "compute_node_6=[]\n"
    assert "compute_node_6" not in run(solution=solution).document["placement"]["layers"]


def broken(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


HOSTILE = "__import__('os').system('touch hacked')"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cluster", "", "there is no section [ComputeNode-0]"),
        ("cluster", "type=A100", "no ini file: "),
        ("cluster", "[ComputeNode-0]\ntype=A100\n" * 2, "no ini file: "),
        ("cluster", "[ComputeNode-0]\n", "[ComputeNode-0] type: this key is missing"),
        (
            "cluster",
            broken(FULL, "type=A100", "type=B100"),
            "[compute_node_2] machine_type: A100, but",
        ),
        (
            "cluster",
            broken(FULL, "type=A100", f"type={HOSTILE}"),
            "[ComputeNode-0] type: '__import",
        ),
        (
            "cluster",
            broken(FULL, "bandwidth=1000 * mbps", f"bandwidth={HOSTILE}"),
            "[Link-0-1] bandwidth: '__import__('os').system('touch hacked')' is no quantity",
        ),
        ("cluster", broken(FULL, "1000 * mbps", "1000 * 1000"), "[Link-0-1] bandwidth: '1000 * 10"),
        ("cluster", broken(FULL, "1000 * mbps", "1000 * furlong"), "units: gbps, mbps"),
        ("cluster", broken(FULL, "1000 * mbps", "-1 * mbps"), "'-1 * mbps' is no quantity"),
        ("cluster", broken(FULL, "1000 * mbps", "1e999 * mbps"), "is no finite quantity"),
        ("cluster", broken(FULL, "1000 * mbps", "0 * mbps"), "bandwidth: must be above zero"),
        ("cluster", broken(FULL, "[Link-0-1]", "[Link-0-9]"), "[Link-0-9]: there is no [ComputeN"),
        ("machines", "", "[A100]: this section is missing"),
        ("machines", broken(MACHINES, "disk_speed = 1 * gbps", ""), "[A100] disk_speed: this key"),
        ("solution", "", "[Settings]: this section is missing"),
        ("solution", "[Settings]\noffset=two\n", "[Settings] offset: 'two' is no whole number"),
        ("solution", "[Settings]\noffset=2\n", "[Solution]: this section is missing"),
        (
            "solution",
            broken(SOLUTION, "[0, 1, 2,", "[0, 2, 1,"),
            "[Solution] compute_node_2: layers must follow each other",
        ),
        ("solution", broken(SOLUTION, "=[0, 1,", f"=[{HOSTILE}, 1,"), "is no flat list"),
        ("solution", broken(SOLUTION, "=[0, 1,", "=[[0], 1,"), "is no flat list"),
        ("solution", broken(SOLUTION, "=[0, 1,", "=['0', 1,"), "is no list of whole numbers"),
        ("solution", broken(SOLUTION, "=[0, 1,", "=[9999999999, 1,"), "is no flat list"),
        (
            "solution",
            broken(SOLUTION, "compute_node_2=", "compute_node_20="),
            "[Solution] compute_node_20: ",
        ),
        ("solution", SOLUTION.split("compute_node_5")[0], "do not make a valid scenario: "),
        ("solution", broken(SOLUTION, ", 59]", ", 59, 60]"), "do not make a valid scenario: "),
        ("links", broken(used(), "[Coordinator]", "[X]"), "[Coordinator]: this section is missing"),
        (
            "links",
            broken(used(), "names=['compute_node_2'", "names=['compute_node_3'"),
            "[ComputeNodes] names: duplicate node",
        ),
        (
            "links",
            broken(used(), "names=['compute_node_2'", "names=['compute_node_22'"),
            "has no node 'compute_node_22'; did you mean",
        ),
        ("links", broken(used(), "names=['compute", "names=[1, 'compute"), "is no list of names"),
        (
            "links",
            broken(used(), "kv_cache_capacity=725040", "kv_cache_capacity=-1"),
            "[compute_node_2] kv_cache_capacity: '-1' is no whole number",
        ),
        (
            "links",
            broken(used(), "in=source", "in=sauce"),
            "[link_source_compute_node_2] in: there is no node 'sauce'",
        ),
        (
            "links",
            broken(used(), "in=source\n", "in=compute_node_2\n"),
            "[link_source_compute_node_2]: a link joins two different machines",
        ),
        (
            "links",
            broken(used(), "'link_source_compute_node_2', ", "'link_source_compute_node_2', " * 2),
            "there is a link from coordinator to compute_node_2 already",
        ),
        (
            "links",
            broken(used(), "'link_source_compute_node_2', ", ""),
            "make a valid scenario: no route leads",
        ),
        (
            "links",
            broken(used(), "'link_source_compute_node_2', ", "'missing', "),
            "[missing]: this section is missing",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_place(run, files, file, text, message):
    with pytest.raises(ImportHelixError, match=re.escape(message)) as caught:
        run(**{file: text})
    if "machine_type" not in message and "make a valid" not in message:
        assert caught.value.file == str(files[file])


def test_nothing_is_evaluated(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportHelixError):
        run(cluster=broken(FULL, "1000 * mbps", HOSTILE))
    with pytest.raises(ImportHelixError):
        run(solution=broken(SOLUTION, "=[0, 1,", f"=[{HOSTILE}, 1,"))
    assert not Path("hacked").exists()


def test_a_type_or_llm_that_does_not_ship(run, files):
    texts = {name: TEXTS[name].replace("A100", "B100") for name in ("cluster", "links")}
    with pytest.raises(ImportHelixError, match=re.escape("[ComputeNode-0] type: no machine type")):
        run(**texts)
    with pytest.raises(ScenarioError, match="no LLM 'llama'"):
        import_helix(**files, llm="llama")


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(ImportHelixError, match="there is no such file"):
        HelixIni(tmp_path)
    (tmp_path / "x.ini").write_bytes(b"\xff\xfe[a]")
    with pytest.raises(ImportHelixError, match="not UTF-8 text"):
        HelixIni(tmp_path / "x.ini")


def test_large_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("helixsim.scenario.helix_ini.MAX_FILE_BYTES", 10)
    (tmp_path / "x.ini").write_text("[a]\nb=1234567\n")
    with pytest.raises(ImportHelixError, match="larger than"):
        HelixIni(tmp_path / "x.ini")


def test_long_hostile_values_are_refused_quickly(tmp_path):
    file = tmp_path / "x.ini"
    file.write_text(f"[a]\nlist=[{'1, ' * 500_000}x]\nquantity={'1' * 1_000_000} * gbps\n")
    ini = HelixIni(file)
    with pytest.raises(ImportHelixError, match="is no flat list"):
        ini.wholes("a", "list")
    with pytest.raises(ImportHelixError, match="is no quantity"):
        ini.quantity("a", "quantity")


def test_units_are_the_artifacts(tmp_path):
    file = tmp_path / "x.ini"
    file.write_text("[a]\n" + "".join(f"{unit}=1.5 * {unit}\n" for unit in UNITS))
    ini = HelixIni(file)
    assert {unit: ini.quantity("a", unit) for unit in ("gbps", "mbps", "MilliSec", "GB")} == {
        "gbps": 1.5e9,
        "mbps": 1.5e6,
        "MilliSec": 0.0015,
        "GB": 1.5e9,
    }


@pytest.mark.parametrize(
    ("file", "name"), [("a/b c!.yaml", "b-c"), ("ok-1.yaml", "ok-1"), ("--.yaml", "imported")]
)
def test_a_scenario_is_named_after_its_file(file, name):
    assert scenario_name(Path(file)) == name


# -- the published files

PARTS = ("a100", "l4", "t4")


def published(reference):
    for solution in sorted((reference / "placements").glob("*/*/solution.ini")):
        folder = solution.parent
        cluster, llm = folder.parent.name.split("-", 1)
        part = folder.name.rpartition("-")[2]
        files = {
            "cluster": reference / "clusters" / f"{cluster}{f'-{part}' * (part in PARTS)}.ini",
            "machines": reference / "clusters" / "machine_profiles.ini",
            "solution": solution,
            "links": folder / "simulator_cluster.ini",
        }
        yield files, llm


@pytest.mark.reference
def test_all_published_placements_load_to_the_last_bit(reference, tmp_path):
    count = 0
    for files, llm in published(reference):
        file = tmp_path / "imported.yaml"
        file.write_text(yaml_text(import_helix(**files, llm=llm).document))
        scenario = load_scenario(file, ["placement.allow_overcommitted_layers=true"])
        ini = HelixIni(files["links"])
        ends = {"source": "coordinator", "sink": "coordinator"}
        links = []
        for section in ini.names("Links", "names"):
            source, target = (ini.name(section, key) for key in ("in", "out"))
            link = Link(
                ends.get(source, source),
                ends.get(target, target),
                ini.quantity(section, "bandwidth"),
                ini.quantity(section, "latency"),
            )
            assert scenario.cluster.network.link(link.source, link.target) == link
            links.append((link.source, link.target))
        assert scenario.placement.links == tuple(links)
        for name in ini.names("ComputeNodes", "names"):
            node = scenario.cluster.node(name)
            assert node.machine_type == ini.name(name, "machine_type")
            layers = HelixIni(files["solution"]).wholes("Solution", name)
            assert scenario.placement.layers[name] == (layers[0], layers[-1] + 1)
            profile = scenario.profiles()[node.machine_type]
            found = node.kv_token_layers or profile.capacity(len(layers)).kv_token_layers
            assert found == ini.whole(name, "kv_cache_capacity")
        count += 1
    assert count == 14


@pytest.mark.reference
def test_quantities_of_the_published_files_are_written_exactly(reference):
    for file in reference.glob("**/*.ini"):
        ini = HelixIni(file)
        for match in ini.sections(r"[Ll]ink.*-.*|link_.*"):
            latency, bandwidth = (ini.quantity(match[0], key) for key in ("latency", "bandwidth"))
            assert seconds(format_seconds(latency)) == latency
            assert bytes_per_s(format_bytes_per_s(bandwidth)) == bandwidth
