r"""The published mixed-integer program for placements: one function per family of constraints.

With layers :math:`L`, nodes :math:`i, j`, coordinator :math:`c`, and :math:`T_i(k)` the tokens
per second of node :math:`i` with :math:`k` layers, the variables are

=====================  ========  =============================================================
``start_i``            integer   :math:`s_i`, the first layer of node i
``hold_i_k``           binary    :math:`b_i^k`, node i holds k layers
``flow_i_j``           real      :math:`f_{ij}`, tokens per second over a link
``link_i_j``           binary    :math:`d_{ij}`, requests may take the link
=====================  ========  =============================================================

In variable names the coordinator is ``source`` or ``sink``. Node i ends at layer
:math:`e_i = s_i + \sum_k k\, b_i^k`. Nodes are numbered in the cluster's order. The objective is
to maximise the flow out of the coordinator, :math:`\sum_i f_{ci}`, in tokens per second.

Not in the published program are a limit on the stages of routes (:func:`_add_stage_limit`) and
constraints that tighten the relaxation without cutting off every optimum
(:func:`_add_strengthening`).

Source: the Helix paper (arXiv 2406.01566), section 4, and the flow graph of
:mod:`helixsim.placement.flow`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from helixsim.planner.milp.inputs import MilpInputs
from helixsim.planner.solver import MAXIMIZE, new_model

if TYPE_CHECKING:
    import mip


@dataclass(frozen=True)
class Formulation:
    """A model, with its variables by their role.

    Attributes
    ----------
    start
        Node -> :math:`s_i`.
    hold
        Node -> :math:`b_i^k` for k = 1, 2, ...
    end
        Node -> :math:`e_i`, an expression.
    flow, link
        (source, target) -> :math:`f_{ij}` and :math:`d_{ij}`, for the links that exist. The
        coordinator's number is the number of nodes.
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
        """The links from a node to a node."""
        coordinator = self.inputs.num_nodes
        return [pair for pair in self.link if coordinator not in pair]

    def inflow(self, node: int) -> mip.LinExpr:
        """The flow into a node or the coordinator."""
        return _total(flow for (_, target), flow in self.flow.items() if target == node)

    def outflow(self, node: int) -> mip.LinExpr:
        """The flow out of a node or the coordinator."""
        return _total(flow for (source, _), flow in self.flow.items() if source == node)


def build(inputs: MilpInputs, solver: str = "CBC", seed: int = 0) -> Formulation:
    """Build the program.

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
        _add_stage_limit(program, inputs.max_stages)
    if inputs.strengthen:
        _add_strengthening(program)
    program.model.objective = program.outflow(inputs.num_nodes)
    return program


def machine_name(inputs: MilpInputs, machine: int, at_coordinator: str) -> str:
    """The part of a variable's name that stands for a node or the coordinator."""
    return at_coordinator if machine == inputs.num_nodes else str(machine)


def existing_links(inputs: MilpInputs) -> list[tuple[int, int]]:
    """(source, target) of every link with capacity, in row-major order."""
    return [
        (source, target)
        for source, row in enumerate(inputs.links)
        for target, capacity in enumerate(row)
        if capacity > 0
    ]


def pair_name(inputs: MilpInputs, prefix: str, source: int, target: int) -> str:
    """Name of a variable or constraint that belongs to a link."""
    names = machine_name(inputs, source, "source"), machine_name(inputs, target, "sink")
    return "_".join((prefix, *names))


def _total(terms: object) -> mip.LinExpr:
    import mip

    return mip.xsum(terms)


def _add_layers(program: Formulation, node: int) -> None:
    r"""Give a node its layers: :math:`\sum_k b_i^k = 1` and :math:`e_i \le L`.

    Every node holds at least one layer; a node that is not needed carries no flow.
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
    r"""Allow flow over a link only if it is switched on: :math:`f_{ij} \le C_{ij} d_{ij}`.

    :math:`C_{ij}` is the least of the link's capacity, the highest throughput of the nodes at its
    ends, and the known bound on the flow.
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
    r"""Switch a link on only if its target holds the layer that follows the source's last one.

    From the coordinator, :math:`s_j \le L (1 - d_{cj})`; to it, :math:`e_i \ge L d_{ic}`.
    Between nodes :math:`s_j \le e_i + L (1 - d_{ij})` and, where layers are aligned,
    :math:`e_i \le s_j + L (1 - d_{ij})`; with partial inference,
    :math:`e_i + 1 \le e_j + L (1 - d_{ij})`.
    """
    inputs, model = program.inputs, program.model
    most, coordinator, link = inputs.num_layers, inputs.num_nodes, program.link[source, target]
    name = pair_name(inputs, "valid", source, target)
    if source == coordinator:
        model.add_constr(program.start[target] + most * link <= most, name=name)
        return
    end = program.end[source]
    if target == coordinator:
        model.add_constr(end - most * link >= 0, name=name)
        return
    start = program.start[target]
    model.add_constr(start - end + most * link <= most, name=f"{name}_from")
    if inputs.partial_inference:
        model.add_constr(end + 1 - program.end[target] + most * link <= most, name=f"{name}_to")
    else:
        model.add_constr(end - start + most * link <= most, name=f"{name}_to")


def _add_conservation(program: Formulation, node: int) -> None:
    r"""Conserve the flow at a node: :math:`\sum_j f_{ji} = \sum_j f_{ij}`."""
    balance = program.inflow(node) - program.outflow(node)
    program.model.add_constr(balance == 0, name=f"conserve_{node}")


def _add_compute_capacity(program: Formulation, node: int) -> None:
    r"""Bound the flow by the node's throughput: :math:`\sum_j f_{ji} \le \sum_k b_i^k T_i(k)`.

    Throughputs are capped at the known bound on the flow.
    """
    rates = program.inputs.tokens_per_s[node][1:]
    capacity = _total(
        min(rate, program.inputs.bound) * var
        for rate, var in zip(rates, program.hold[node], strict=True)
    )
    program.model.add_constr(program.inflow(node) - capacity <= 0, name=f"compute_{node}")


def _add_interface_capacity(program: Formulation, node: int) -> None:
    r"""Bound the flow by the node's network interface, in each direction.

    With :math:`N_i` tokens per second between nodes and :math:`n_i` where only token ids pass,
    :math:`\sum_{j \ne c} f_{ji} / N_i + f_{ci} / n_i \le 1`. Where layers are aligned, only one
    of the two terms can be above zero, so this equals the capacity in the flow graph. With
    partial inference, the graph counts every token with its activations on an interface that
    both kinds of traffic pass, so this constraint is weaker than the graph.
    """
    inputs, coordinator = program.inputs, program.inputs.num_nodes
    sides = (
        ("nic_in", inputs.inbound[node], inputs.token_inbound[node], 1),
        ("nic_out", inputs.outbound[node], inputs.token_outbound[node], 0),
    )
    for name, between, tokens, end in sides:
        flows = {p: flow for p, flow in program.flow.items() if p[end] == node}
        if sum(flow.ub for flow in flows.values()) <= min(between, tokens):
            continue
        # Scaled by the smaller capacity, so that all coefficients are near one.
        use = _total(
            min(between, tokens) / (tokens if coordinator in pair else between) * flow
            for pair, flow in flows.items()
        )
        program.model.add_constr(use <= min(between, tokens), name=f"{name}_{node}")


def _add_coordinator_capacity(program: Formulation) -> None:
    r"""Bound all flow by the coordinator's interface, in each direction.

    :math:`\sum_i f_{ci} \le n_c`, and the same for the flow back to it.
    """
    inputs, coordinator = program.inputs, program.inputs.num_nodes
    for name, flow, most in (
        ("source", program.outflow(coordinator), inputs.token_outbound[coordinator]),
        ("sink", program.inflow(coordinator), inputs.token_inbound[coordinator]),
    ):
        program.model.add_constr(flow <= most, name=f"nic_{name}")
    if inputs.bound < inf:
        program.model.add_constr(program.outflow(coordinator) <= inputs.bound, name="bound")


# -- not in the published program --------------------------------------------------------------


def _add_stage_limit(program: Formulation, max_stages: int) -> None:
    r"""Limit routes to S = `max_stages` nodes.

    The real variable ``stage_i`` :math:`u_i`, in [1, S], counts the nodes of the longest route up
    to and including node i: :math:`u_j \ge u_i + 1 - S (1 - d_{ij})`. A placement uses every link
    that fits its layers, so a link must be switched on wherever the layers fit. For every link
    between nodes, the binary ``apart_i_j`` :math:`w_{ij}` chooses on which side the layers fail to
    fit, if they do:

    .. math::

        e_i + 1 \le s_j + (L + 1) (d_{ij} + w_{ij}), \qquad
        s_j + 1 \le e_i + L (d_{ij} + 1 - w_{ij})

    and with partial inference :math:`e_j \le e_i + L (d_{ij} + 1 - w_{ij})` as the second.
    """
    inputs, model = program.inputs, program.model
    most = inputs.num_layers
    stage = [
        model.add_var(f"stage_{node}", lb=1, ub=max_stages) for node in range(inputs.num_nodes)
    ]
    for i, j in program.links_between_nodes:
        link, start, end = program.link[i, j], program.start[j], program.end[i]
        model.add_constr(
            stage[i] - stage[j] + max_stages * link <= max_stages - 1, name=f"later_{i}_{j}"
        )
        apart = model.add_var(f"apart_{i}_{j}", var_type="B")
        model.add_constr(
            end - start - (most + 1) * link - (most + 1) * apart <= -1, name=f"before_{i}_{j}"
        )
        if inputs.partial_inference:
            beyond = program.end[j] - end - most * link + most * apart <= most
        else:
            beyond = start - end - most * link + most * apart <= most - 1
        model.add_constr(beyond, name=f"beyond_{i}_{j}")


def _add_strengthening(program: Formulation) -> None:
    """Add constraints that each keep at least one optimal placement.

    The optimum stays the same, and the solver needs less work: the relaxation of the published
    program lets every node hold one layer and compute at its highest throughput.
    """
    _add_work(program)
    _add_one_direction(program)
    _add_order(program)


def _add_work(program: Formulation) -> None:
    r"""Every token needs every layer: :math:`L \sum_i f_{ci} \le \sum_{ik} k T_i(k) b_i^k`.

    A node computes at most k layers for each of its :math:`T_i(k)` tokens per second, with
    partial inference too. Throughputs are capped at the known bound on the flow.
    """
    inputs = program.inputs
    work = _total(
        k * min(inputs.tokens_per_s[node][k], inputs.bound) / inputs.num_layers * var
        for node, hold in enumerate(program.hold)
        for k, var in enumerate(hold, start=1)
    )
    program.model.add_constr(program.outflow(inputs.num_nodes) - work <= 0, name="work")


def _add_one_direction(program: Formulation) -> None:
    r"""At most one direction of a pair is on: :math:`d_{ij} + d_{ji} \le 1`.

    The end layer rises along every link of a route.
    """
    for source, target in program.links_between_nodes:
        if source < target and (target, source) in program.link:
            both = program.link[source, target] + program.link[target, source]
            program.model.add_constr(both <= 1, name=f"one_way_{source}_{target}")


def _add_order(program: Formulation) -> None:
    r"""Break the symmetry of interchangeable nodes: :math:`s_i \le s_j` for i < j."""
    for group in program.inputs.interchangeable:
        for one, other in pairwise(group):
            order = program.start[one] - program.start[other]
            program.model.add_constr(order <= 0, name=f"order_{one}_{other}")
