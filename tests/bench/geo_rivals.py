"""The rivals of Helix on the cluster of three regions, as the paper has them on one cluster.

Their placements were not published. Swarm is placed by its rule. The separate pipelines are the
pipelines of the single cluster, type by type: nodes of a type take the layers in the cluster's
order, which is by region, so that a pipeline crosses between regions as seldom as it can.
"""

from __future__ import annotations

from dataclasses import replace

from helixsim import load_scenario, plan
from helixsim.placement.placement import Placement
from helixsim.scenario.resolved import Scenario

GEO, SINGLE = "geo24-llama2-70b", "single24-llama2-70b"
RIVAL = "geo24 rival: "


def rival(name: str, overrides: list[str]) -> Scenario:
    """The scenario of a rival.

    Parameters
    ----------
    name
        ``geo24 rival: METHOD MODE``: a method such as swarm or separate-l4, and offline or online.
    overrides
        Values to set.
    """
    method, mode = name.removeprefix(RIVAL).rsplit(" ", 1)
    base = load_scenario(f"{GEO}-helix-{mode}", overrides)
    model = load_scenario(f"{SINGLE}-{method}-{mode}", overrides)
    if method == "swarm":
        placement = plan(base, method="swarm", objective="flow").placement
    else:
        placement = _same_pipeline(base, model)
    load = model.workload
    if mode == "online":
        # Each part gets its share of what the geo-distributed cluster is offered.
        whole = load_scenario(f"{SINGLE}-helix-online", overrides).workload.mean_tokens_per_s
        share = load.mean_tokens_per_s / whole
        load = replace(load, mean_tokens_per_s=base.workload.mean_tokens_per_s * share)
    return replace(base, name=name, placement=placement, scheduler=model.scheduler, workload=load)


def _same_pipeline(base: Scenario, model: Scenario) -> Placement:
    """The placement of a pipeline of one type on the nodes of that type."""
    (kind,) = model.cluster.machine_mix()
    nodes = [node.name for node in base.cluster if node.machine_type == kind]
    spans = sorted(model.placement.layers.values())
    return Placement(dict(zip(nodes, spans, strict=True)), allow_overcommitted_layers=True)
