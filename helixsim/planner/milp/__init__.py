"""The published method: a mixed-integer linear program, with python-mip.

For comparison: from ten machines on, CBC seldom improves on its start within a minute.
"""

from helixsim.planner.milp.solution_file import recover
from helixsim.planner.milp.solve import milp

__all__ = ["milp", "recover"]
