"""The published method: a mixed-integer linear program, with python-mip.

For comparison: on clusters of more than a dozen nodes, CBC hardly improves on its start.
"""

from helixsim.planner.milp.solution_file import recover
from helixsim.planner.milp.solve import milp

__all__ = ["milp", "recover"]
