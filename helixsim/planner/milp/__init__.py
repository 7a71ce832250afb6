"""The published method: a mixed-integer linear program, solved through python-mip.

It serves for comparison: with ten nodes or more, CBC seldom improves on its start within a minute.
"""

from helixsim.planner.milp.solutions import recover
from helixsim.planner.milp.solve import milp

__all__ = ["milp", "recover"]
