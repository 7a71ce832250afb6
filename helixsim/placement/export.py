"""A placement and its flow as a NetworkX graph, for other tools."""

from __future__ import annotations

import json
from io import BytesIO

import networkx as nx

from helixsim.cluster import COORDINATOR
from helixsim.placement.flow import Flow
from helixsim.placement.topology import Topology


def to_networkx(topology: Topology, flow: Flow) -> nx.DiGraph[str]:
    """Turn a topology and its maximum flow into a directed graph of machines.

    Parameters
    ----------
    topology
        Nodes and links.
    flow
        Their flow, from :func:`~helixsim.placement.flow.max_flow`.

    Returns
    -------
    networkx.DiGraph
        One node for each machine that holds layers, by name, in order, and the front ends last
        (mostly one, ``coordinator``); one edge for each link. All attributes are texts and
        numbers, so that every format of NetworkX supports them.

        Nodes have ``name``, ``type`` (machine type; ``coordinator``, or ``front end`` of several),
        ``region``, ``start_layer``, ``end_layer`` (half-open; for a front end, 0 and 0),
        ``capacity_tokens_per_s`` (compute capacity of the machine; for a front end, capacity
        of its network interface) and ``flow_tokens_per_s`` (flow through the machine).

        Edges have ``bandwidth_bytes_per_s``, ``latency_s``, ``capacity_tokens_per_s`` (the
        bandwidth divided by the bytes of a token) and ``flow_tokens_per_s``. The graph has
        ``llm``, ``num_layers`` and ``max_flow_tokens_per_s``.
    """
    graph: nx.DiGraph[str] = nx.DiGraph(
        llm=topology.llm.name,
        num_layers=topology.llm.num_layers,
        max_flow_tokens_per_s=flow.tokens_per_s,
    )
    for node, capacity in zip(topology.nodes, flow.compute_tokens_per_s, strict=True):
        graph.add_node(
            node.name,
            name=node.name,
            type=node.machine_type,
            region=node.region,
            start_layer=node.start_layer,
            end_layer=node.end_layer,
            capacity_tokens_per_s=capacity,
            flow_tokens_per_s=node_flow(topology, flow, node.index),
        )
    for home, front_end in zip(topology.front_end_machines, topology.front_ends, strict=True):
        nic = front_end.nic
        graph.add_node(
            front_end.name,
            name=front_end.name,
            type=COORDINATOR if len(topology.front_ends) == 1 else "front end",
            region=front_end.region,
            start_layer=0,
            end_layer=0,
            capacity_tokens_per_s=min(nic.inbound_bytes_per_s, nic.outbound_bytes_per_s)
            / topology.llm.token_bytes,
            flow_tokens_per_s=flow.tokens_per_s
            if len(topology.front_ends) == 1
            else node_flow(topology, flow, home),
        )
    for link, tokens_per_s in zip(topology.links, flow.link_tokens_per_s, strict=True):
        graph.add_edge(
            topology.name(link.source),
            topology.name(link.target),
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
            latency_s=link.latency_s,
            capacity_tokens_per_s=link.bandwidth_bytes_per_s / link.bytes_per_token,
            flow_tokens_per_s=tokens_per_s,
        )
    return graph


def graph_text(graph: nx.DiGraph[str], suffix: str) -> str:
    """Write a graph as the text of a file.

    Parameters
    ----------
    graph
        From :func:`to_networkx`.
    suffix
        ``.graphml``, for Gephi, yEd, Cytoscape, igraph and others; or ``.json``, node-link data
        that ``networkx.node_link_graph(data, edges="edges")`` reads.
    """
    if suffix == ".json":
        data = {
            "directed": True,
            "multigraph": False,
            "graph": graph.graph,
            "nodes": [{"id": name, **values} for name, values in graph.nodes(data=True)],
            "edges": [{"source": a, "target": b, **values} for a, b, values in graph.edges.data()],
        }
        return json.dumps(data, indent=1) + "\n"
    assert suffix == ".graphml"
    stream = BytesIO()
    nx.write_graphml_xml(graph, stream)
    return stream.getvalue().decode() + "\n"


def node_flow(topology: Topology, flow: Flow, index: int) -> float:
    """Tokens per second of a flow that pass through a node, or return to a front end."""
    return sum(flow.link_tokens_per_s[link.index] for link in topology.incoming[index])
