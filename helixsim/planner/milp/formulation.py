r"""The published mixed-integer program for placements, one function per family of constraints.

With layers :math:`L`, nodes :math:`i, j`, coordinator :math:`c`, and :math:`T_i(k)` the tokens
per second of node :math:`i` with :math:`k` layers, the variables are

=====================  ========  =============================================================
``start_i``            integer   :math:`s_i`, the first layer of node i
``hold_i_k``           binary    :math:`b_i^k`, node i holds k layers
``flow_i_j``           real      :math:`f_{ij}`, tokens per second over a link
``link_i_j``           binary    :math:`d_{ij}`, requests may take the link
=====================  ========  =============================================================

with ``source`` and ``sink`` for the coordinator in names, and the end of node i is
:math:`e_i = s_i + \sum_k k\, b_i^k`. Nodes have their numbers in the cluster's order. To be
maximised is what leaves the coordinator, :math:`\sum_i f_{ci}`.

Source: the Helix paper (arXiv 2406.01566), section 4, and the flow graph of
:mod:`helixsim.placement.flow`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from helixsim.planner.milp.inputs import MilpInputs
from helixsim.planner.milp.stages import add_stage_limit
from helixsim.planner.milp.strengthening import add_strengthening
from helixsim.planner.solver import MAXIMIZE, new_model

if TYPE_CHECKING:
    import mip


@dataclass(frozen=True)
class Formulation:
    """A model and its variables by what they mean.

    Attributes
    ----------
    start
        Node -> :math:`s_i`.
    hold
        Node -> :math:`b_i^k` for k = 1, 2, ...
    end
        Node -> :math:`e_i`, an expression.
    flow, link
        (source, target), the coordinator being the number of nodes -> :math:`f_{ij}` and
        :math:`d_{ij}`; only for links that exist.
    """

    model: mip.Model
    inputs: MilpInputs
    start: list[mip.Var] = field(default_factory=list)
    hold: list[list[mip.Var]] = field(default_factory=list)
    end: list[mip.LinExpr] = field(default_factory=list)
    flow: dict[tuple[int, int], mip.Var] = field(default_factory=dict)
    link: dict[tuple[int, int], mip.Var] = field(default_factory=dict)

    @property
    def links_between_nodes(self) -> list[tuple[int, int]]:
        """The links that do not touch the coordinator."""
        home = self.inputs.num_nodes
        return [pair for pair in self.link if home not in pair]

    def inflow(self, node: int) -> mip.LinExpr:
        """What enters a machine."""
        return _total(flow for (_, target), flow in self.flow.items() if target == node)

    def outflow(self, node: int) -> mip.LinExpr:
        """What leaves a machine."""
        return _total(flow for (source, _), flow in self.flow.items() if source == node)


def build(inputs: MilpInputs, solver: str = "CBC", seed: int = 0) -> Formulation:
    """State the program.

    Raises
    ------
    ScenarioError
        If the solver is not installed.
    """
    program = Formulation(new_model(MAXIMIZE, solver, seed), inputs)
    for node in range(inputs.num_nodes):
        _add_layers(program, node)
    for pair in existing_links(inputs):
        _add_link(program, *pair)
    for pair in program.link:
        _add_link_validity(program, *pair)
    for node in range(inputs.num_nodes):
        _add_conservation(program, node)
        _add_compute_capacity(program, node)
        _add_interface_capacity(program, node)
    _add_coordinator_capacity(program)
    if inputs.max_stages is not None:
        add_stage_limit(program, inputs.max_stages)
    if inputs.strengthen:
        add_strengthening(program)
    program.model.objective = program.outflow(inputs.num_nodes)
    return program


def machine_name(inputs: MilpInputs, machine: int, at_coordinator: str) -> str:
    """How names of variables call a machine."""
    return at_coordinator if machine == inputs.num_nodes else str(machine)


def existing_links(inputs: MilpInputs) -> list[tuple[int, int]]:
    """Pairs of machines that a link joins, row by row."""
    return [
        (source, target)
        for source, row in enumerate(inputs.links)
        for target, capacity in enumerate(row)
        if capacity > 0
    ]


def pair_name(inputs: MilpInputs, prefix: str, source: int, target: int) -> str:
    """The name of a variable that belongs to a link."""
    names = machine_name(inputs, source, "source"), machine_name(inputs, target, "sink")
    return "_".join((prefix, *names))


def _total(terms: object) -> mip.LinExpr:
    import mip

    return mip.xsum(terms)


def _add_layers(program: Formulation, node: int) -> None:
    r"""State what a node holds: :math:`\sum_k b_i^k = 1` and :math:`e_i \le L`.

    So every node holds a layer at least; one that is not needed carries no flow.
    """
    inputs, model = program.inputs, program.model
    start = model.add_var(f"start_{node}", lb=0, ub=inputs.num_layers - 1, var_type="I")
    sizes = range(1, inputs.max_layers(node) + 1)
    hold = [model.add_var(f"hold_{node}_{k}", var_type="B") for k in sizes]
    end = start + _total(k * var for k, var in zip(sizes, hold, strict=True))
    program.start.append(start)
    program.hold.append(hold)
    program.end.append(end)
    model.add_constr(_total(hold) == 1, name=f"one_size_{node}")
    model.add_constr(end <= inputs.num_layers, name=f"last_layer_{node}")


def _add_link(program: Formulation, source: int, target: int) -> None:
    r"""Open a link by its switch: :math:`f_{ij} \le C_{ij} d_{ij}`.

    :math:`C_{ij}` is what the link carries, or less where no machine at its ends, or no
    placement at all, can do as much.
    """
    inputs, model = program.inputs, program.model
    capacity = min(
        inputs.links[source][target],
        inputs.bound,
        *(max(inputs.tokens_per_s[node]) for node in (source, target) if node != inputs.num_nodes),
    )
    flow = model.add_var(pair_name(inputs, "flow", source, target), lb=0, ub=capacity)
    link = model.add_var(pair_name(inputs, "link", source, target), var_type="B")
    program.flow[source, target], program.link[source, target] = flow, link
    name = pair_name(inputs, "switch", source, target)
    model.add_constr(flow - capacity * link <= 0, name=name)


def _add_link_validity(program: Formulation, source: int, target: int) -> None:
    r"""Let requests take a link only if they find the next layer behind it.

    From the coordinator, :math:`s_j \le L (1 - d_{cj})`; to it, :math:`e_i \ge L d_{ic}`.
    Between nodes :math:`s_j \le e_i + L (1 - d_{ij})` and, where layers are aligned,
    :math:`e_i \le s_j + L (1 - d_{ij})`; with partial inference,
    :math:`e_i + 1 \le e_j + L (1 - d_{ij})`.
    """
    inputs, model = program.inputs, program.model
    most, home, link = inputs.num_layers, inputs.num_nodes, program.link[source, target]
    name = pair_name(inputs, "valid", source, target)
    if source == home:
        model.add_constr(program.start[target] + most * link <= most, name=name)
        return
    end = program.end[source]
    if target == home:
        model.add_constr(end - most * link >= 0, name=name)
        return
    start = program.start[target]
    model.add_constr(start - end + most * link <= most, name=f"{name}_from")
    if inputs.partial_inference:
        model.add_constr(end + 1 - program.end[target] + most * link <= most, name=f"{name}_to")
    else:
        model.add_constr(end - start + most * link <= most, name=f"{name}_to")


def _add_conservation(program: Formulation, node: int) -> None:
    r"""What enters a node leaves it: :math:`\sum_j f_{ji} = \sum_j f_{ij}`."""
    balance = program.inflow(node) - program.outflow(node)
    program.model.add_constr(balance == 0, name=f"conserve_{node}")


def _add_compute_capacity(program: Formulation, node: int) -> None:
    r"""A node computes no more than with its layers: :math:`\sum_j f_{ji} \le \sum_k b_i^k T_i(k)`.

    A throughput above the known bound on the flow counts as that bound.
    """
    rates = program.inputs.tokens_per_s[node][1:]
    can = _total(
        min(rate, program.inputs.bound) * var
        for rate, var in zip(rates, program.hold[node], strict=True)
    )
    program.model.add_constr(program.inflow(node) - can <= 0, name=f"compute_{node}")


def _add_interface_capacity(program: Formulation, node: int) -> None:
    r"""What passes a network interface fits it, both ways.

    With :math:`N_i` tokens per second between nodes and :math:`n_i` where only token ids pass,
    :math:`\sum_{j \ne c} f_{ji} / N_i + f_{ci} / n_i \le 1`. Where layers are aligned only one
    of the two can be above zero, so this is the flow graph's capacity; with partial inference
    the graph counts all tokens as heavy on an interface that both pass, and this is weaker.
    """
    inputs, home = program.inputs, program.inputs.num_nodes
    sides = (
        ("nic_in", inputs.inbound[node], inputs.token_inbound[node], 1),
        ("nic_out", inputs.outbound[node], inputs.token_outbound[node], 0),
    )
    for name, between, tokens, end in sides:
        flows = {p: flow for p, flow in program.flow.items() if p[end] == node}
        if sum(flow.ub for flow in flows.values()) <= min(between, tokens):
            continue
        # Scaled by the slower of the two, so that all coefficients are around one.
        use = _total(
            min(between, tokens) / (tokens if home in pair else between) * flow
            for pair, flow in flows.items()
        )
        program.model.add_constr(use <= min(between, tokens), name=f"{name}_{node}")


def _add_coordinator_capacity(program: Formulation) -> None:
    r"""All flow passes the coordinator's interface: :math:`\sum_i f_{ci} \le n_c`, both ways."""
    inputs, home = program.inputs, program.inputs.num_nodes
    for name, flow, most in (
        ("source", program.outflow(home), inputs.token_outbound[home]),
        ("sink", program.inflow(home), inputs.token_inbound[home]),
    ):
        program.model.add_constr(flow <= most, name=f"nic_{name}")
    if inputs.bound < inf:
        program.model.add_constr(program.outflow(home) <= inputs.bound, name="bound")
