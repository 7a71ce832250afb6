"""Where to put which layers: placements that let the most tokens through, or serve the most.

:func:`helixsim.planner.plan.plan` is the way in. Every method works on the numbers of a
:class:`~helixsim.planner.problem.PlanningProblem` and reports to a
:class:`~helixsim.planner.search.Search`.
"""
