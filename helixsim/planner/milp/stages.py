r"""A limit on the stages of routes, which the published program does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixsim.planner.milp.formulation import Formulation


def add_stage_limit(program: Formulation, max_stages: int) -> None:
    r"""Let no route pass more than S nodes.

    ``stage_i``, real, in [1, S], counts the nodes on the longest way to node i, itself
    included: :math:`u_j \ge u_i + 1 - S (1 - d_{ij})`. A placement has every link that fits its
    layers, so a switch must be on wherever they fit: for every link between nodes, the binary
    ``apart_i_j`` :math:`w_{ij}` says which way the layers miss each other, if they do,

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
