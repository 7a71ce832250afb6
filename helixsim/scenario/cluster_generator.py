"""Generate clusters: machines by type and count, in regions, with even or uneven links."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

from helixsim.cluster import COORDINATOR, FrontEnd, RuleNetwork
from helixsim.errors import OutputError
from helixsim.scenario.cluster_spec import NetworkSpec, RulesSpec
from helixsim.scenario.front_end_spec import DEFAULT_REGION, to_front_ends
from helixsim.scenario.generator_spec import GeneratorFile, GeneratorSpec
from helixsim.scenario.plain import Plain, link_data, nic_data, rule_data
from helixsim.yaml_files import MAX_FILE_BYTES, read_yaml, validate, yaml_text


def generate_cluster(
    spec: GeneratorSpec, *, seed: int | None = None, explicit_links: bool = False
) -> Plain:
    """Generate a cluster.

    Parameters
    ----------
    spec
        Settings of the cluster.
    seed
        Replaces the seed of `spec`.
    explicit_links
        Write every link instead of the rules; the links are the same.

    Returns
    -------
    dict
        The contents of a cluster file, nodes one by one. The same spec and seed give the same
        cluster.
    """
    seed = spec.seed if seed is None else seed
    nodes = _nodes(spec, seed)
    front_ends = to_front_ends(spec.coordinator)
    return {
        "coordinator": _front_end(front_ends[0])
        if len(front_ends) == 1
        else [_front_end(front_end) | {"share": front_end.share} for front_end in front_ends],
        "nodes": nodes,
        "network": _links(spec, nodes, seed) if explicit_links else _rules(spec.network, seed),
    }


def cluster_file(path: str | Path, *, seed: int | None = None, explicit_links: bool = False) -> str:
    """Generate the cluster of a generator file, as the text of a cluster file.

    Parameters
    ----------
    path
        The generator file.
    seed, explicit_links
        See :func:`generate_cluster`.

    Raises
    ------
    ScenarioError
        If the generator file cannot be used.
    OutputError
        If the cluster file would be too large to be read.
    """
    spec = validate(GeneratorFile, read_yaml(path), path)
    head = {"schema": 1, "kind": "cluster"}
    head |= {key: text for key in ("source", "description") if (text := getattr(spec, key))}
    text = yaml_text(head | generate_cluster(spec, seed=seed, explicit_links=explicit_links))
    if len(text) > MAX_FILE_BYTES:
        raise OutputError(
            f"a file of {len(text) / 1e6:.0f} MB could not be read again; leave the links as rules"
        )
    return text


def _front_end(front_end: FrontEnd) -> Plain:
    name, region = front_end.name, front_end.region
    return {
        **({} if name == COORDINATOR else {"name": name}),
        "nic": nic_data(front_end.nic),
        **({} if region == DEFAULT_REGION else {"region": region}),
    }


def _nodes(spec: GeneratorSpec, seed: int) -> list[dict[str, str]]:
    machines = [
        (region, machine_type)
        for region, counts in spec.machines_by_region.items()
        for machine_type, count in counts.items()
        for _ in range(count)
    ]
    if spec.shuffle:
        random.Random(f"{seed}/shuffle").shuffle(machines)
    numbers: dict[str, int] = {}
    nodes = []
    for region, machine_type in machines:
        pattern = spec.node_name or f"{machine_type.lower()}-{{i}}"
        number = numbers[pattern] = numbers.get(pattern, -1) + 1
        node = {"name": pattern.replace("{i}", str(number)), "type": machine_type}
        nodes.append(node if region == DEFAULT_REGION else node | {"region": region})
    return nodes


def _rules(network: RulesSpec, seed: int) -> Plain:
    rules: Plain = {}
    if network.within is not None:
        rules["within"] = rule_data(network.within.to_rule())
    if network.across is not None:
        rules["across"] = rule_data(network.across.to_rule())
    if network.regions:
        rules["regions"] = [
            {"between": list(rule.between), **rule_data(rule.to_rule())} for rule in network.regions
        ]
    return rules | {"seed": seed}


def _links(spec: GeneratorSpec, nodes: list[dict[str, str]], seed: int) -> Plain:
    front_ends = to_front_ends(spec.coordinator)
    regions = {front_end.name: front_end.region for front_end in front_ends}
    regions |= {node["name"]: node.get("region", DEFAULT_REGION) for node in nodes}
    network = _network(spec.network, regions, seed)
    found = (network.link(*pair) for pair in combinations(regions, 2))
    return {
        "links": [
            {"between": [link.source, link.target], **link_data(link)}
            for link in found
            if link is not None
        ]
    }


def _network(rules: RulesSpec, regions: dict[str, str], seed: int) -> RuleNetwork:
    spec = NetworkSpec(within=rules.within, across=rules.across, regions=rules.regions, seed=seed)
    return spec.to_network(regions)
