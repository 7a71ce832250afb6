r"""What the published program lacks: constraints that cut off no optimum, and save the solver work.

Each holds for at least one optimal placement, so the optimum stays what it was. Without them,
the relaxation knows nothing of layers: it lets every node hold one, and compute fastest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixsim.planner.milp.formulation import Formulation


def add_strengthening(program: Formulation) -> None:
    """Add all of them."""
    _add_work(program)
    _add_one_direction(program)
    _add_order(program)


def _add_work(program: Formulation) -> None:
    r"""All layers of all tokens are computed: :math:`L \sum_i f_{ci} \le \sum_{ik} k T_i(k) b_i^k`.

    A node does at most k layers of each of the :math:`T_i(k)` tokens that pass it per second,
    with partial inference too; :math:`T_i(k)` counts no more than the bound on the flow.
    """
    import mip

    inputs = program.inputs
    work = mip.xsum(
        k * min(inputs.tokens_per_s[node][k], inputs.bound) / inputs.num_layers * var
        for node, hold in enumerate(program.hold)
        for k, var in enumerate(hold, start=1)
    )
    program.model.add_constr(program.outflow(inputs.num_nodes) - work <= 0, name="work")


def _add_one_direction(program: Formulation) -> None:
    r"""No request goes back: :math:`d_{ij} + d_{ji} \le 1`, as ends rise along a link."""
    for source, target in program.links_between_nodes:
        if source < target and (target, source) in program.link:
            both = program.link[source, target] + program.link[target, source]
            program.model.add_constr(both <= 1, name=f"one_way_{source}_{target}")


def _add_order(program: Formulation) -> None:
    r"""Nodes that may swap come in the order of their layers: :math:`s_i \le s_j` for i < j."""
    for group in program.inputs.alike:
        for one, other in pairwise(group):
            order = program.start[one] - program.start[other]
            program.model.add_constr(order <= 0, name=f"order_{one}_{other}")
