"""Write the shipped scenarios of the published runs, with their clusters and placements.

    python tests/tools/restate_scenarios.py <reference folder> [<folder to write to>]

Clusters and placements are imported from the published files; the settings of the runs are
from ``expected/simulator_cases.json``. Values that are not published are at the head of
this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helixsim.scenario.import_helix import ImportedScenario, import_helix
from helixsim.yaml_files import yaml_text

SOURCE = "Helix (ASPLOS'25, arXiv 2406.01566), open artifact, Apache-2.0"

CLUSTERS = {
    "single24": "4 A100, 8 L4, 12 T4 in one place",
    "single24-a100": "The 4 A100 of single24",
    "single24-l4": "The 8 L4 of single24",
    "single24-t4": "The 12 T4 of single24",
    "geo24": "4 A100, 8 L4, 12 T4 in three regions, the coordinator apart",
    "het42": "42 machines of seven types in one place",
}

# Mean tokens/s of online runs that were not published. The published ones ask for about 2.8
# times the offline decode throughput of the same placement; so do these. That of the parts of
# the 30B placement is split as their estimated throughputs are.
UNPUBLISHED_ONLINE = {
    "single24-llama1-30b-helix-a100": 600,
    "single24-llama1-30b-helix-l4": 120,
    "single24-llama1-30b-helix-t4": 230,
    "single24-llama1-30b-swarm": 420,
    "geo24-llama2-70b-helix": 270,
    "het42-llama2-70b-helix": 1800,
    "het42-llama2-70b-swarm": 1320,
}

UNPUBLISHED = (
    "Not published: online at about 2.8 times the offline decode throughput, as published runs"
)
PUBLISHED_KV = {"high_water_mark": 0.85, "expected_output_ratio": 1.0}
PUBLISHED_FEED_MARK = 0.8
PUBLISHED_POLICY = "maxflow"
"""What the preset ``published`` says."""
ONLINE = {
    "mode": "online",
    "warmup_s": 0,
    "measure_s": 1800,
    "kv": {"high_water_mark": 0.9, "expected_output_ratio": 0.6},
}


def cluster_of(placement: str) -> str:
    """The cluster of a placement such as ``single24-llama2-70b/separate-l4``."""
    folder, method = placement.split("/")
    cluster = folder.partition("-llama")[0]
    part = f"{cluster}-{method.rpartition('-')[2]}"
    return part if part in CLUSTERS else cluster


def llm_of(placement: str) -> str:
    """The LLM of a placement."""
    return "llama" + placement.split("/", maxsplit=1)[0].partition("-llama")[2]


def name_of(placement: str) -> str:
    """Name of a placement's file."""
    return placement.replace("/", "-")


def imported(reference: Path, placement: str) -> ImportedScenario:
    """Import a placement with its cluster."""
    folder = reference / "placements" / placement
    return import_helix(
        cluster=reference / "clusters" / f"{cluster_of(placement)}.ini",
        machines=reference / "clusters" / "machine_profiles.ini",
        solution=folder / "solution.ini",
        links=folder / "simulator_cluster.ini",
        llm=llm_of(placement),
    )


def placements(reference: Path) -> list[str]:
    """All published placements, sorted."""
    files = (reference / "placements").glob("*/*/solution.ini")
    return sorted(f"{file.parts[-3]}/{file.parts[-2]}" for file in files)


def runs(reference: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and document of every run; a published run on several clusters is several."""
    text = (reference / "expected" / "simulator_cases.json").read_text(encoding="utf-8")
    for case in json.loads(text):
        for part in case["parts"]:
            stem = name_of(part["placement"])
            if stem.endswith("-scheduling-study"):
                scheduler = case["scheduler"].replace("_", "-")
                stem = stem.replace("helix-scheduling-study", f"study-{scheduler}")
            published = f"published run {case['id']}"
            if len(case["parts"]) > 1:
                published = f"one of {len(case['parts'])} parts of the {published}"
            name = f"{stem}-{case['mode']}"
            yield name, run_document(name, f"{published[0].upper()}{published[1:]}", case, part)
            if case["mode"] == "offline" and stem in UNPUBLISHED_ONLINE:
                name = f"{stem}-online"
                online = case | ONLINE
                rate = part | {"mean_tokens_per_s": UNPUBLISHED_ONLINE[stem]}
                yield name, run_document(name, UNPUBLISHED, online, rate)


def run_document(
    name: str, description: str, case: dict[str, Any], part: dict[str, Any]
) -> dict[str, Any]:
    """One run as a scenario."""
    placement = {"file": f"placements/{name_of(part['placement'])}.yaml"}
    if part.get("allow_overcommitted_layers"):
        placement["allow_overcommitted_layers"] = True
    # What the preset says is not repeated, so that another preset can be tried.
    scheduler = {"preset": "published"}
    if case["scheduler"] != PUBLISHED_POLICY:
        scheduler["policy"] = case["scheduler"]
    if case["kv"] != PUBLISHED_KV:
        scheduler["kv"] = case["kv"]
    workload = {"mode": case["mode"], "lengths": "azure-conversation"}
    if case["mode"] == "offline":
        if case["feed_high_water_mark"] != PUBLISHED_FEED_MARK:
            scheduler["feed_high_water_mark"] = case["feed_high_water_mark"]
        workload["initial_requests"] = part["initial_queries"]
    else:
        workload["arrivals"] = "azure-conversation"
        workload["mean_tokens_per_s"] = part["mean_tokens_per_s"]
    return {
        "schema": 1,
        "name": name,
        "description": description,
        "llm": case["model"],
        "cluster": {"file": f"clusters/{part['cluster']}.yaml"},
        "placement": placement,
        "scheduler": scheduler,
        "workload": workload,
        "physics": "paper",
        "run": {
            "seed": case["seed"],
            "warmup": f"{case['warmup_s']} s",
            "duration": f"{case['warmup_s'] + case['measure_s']} s",
        },
    }


def scenario_files(reference: Path) -> dict[str, str]:
    """Name -> text of every file."""
    files = {}
    for placement in placements(reference):
        document: dict[str, Any] = imported(reference, placement).document
        cluster = cluster_of(placement)
        files[f"clusters/{cluster}.yaml"] = file_text(
            "cluster", CLUSTERS[cluster], document["cluster"]
        )
        del document["placement"]["allow_overcommitted_layers"]
        folder, method = placement.split("/")
        files[f"placements/{name_of(placement)}.yaml"] = file_text(
            "placement", f"Placement {method} of {folder}", document["placement"]
        )
    return files | {f"{name}.yaml": yaml_text(document) for name, document in runs(reference)}


def file_text(kind: str, description: str, body: dict[str, Any]) -> str:
    """A cluster or placement file."""
    head = {"schema": 1, "kind": kind, "source": SOURCE, "description": description}
    return yaml_text(head | body)


def restate(reference: Path, target: Path) -> None:
    """Write all files below `target`."""
    for name, text in scenario_files(reference).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    shipped = Path(__file__).parents[2] / "scenarios"
    restate(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else shipped)
