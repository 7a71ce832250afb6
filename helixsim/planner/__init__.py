"""Choose placements: which node holds which layers.

:func:`helixsim.planner.plan.plan` is the entry point. Every method works on the numbers of a
:class:`~helixsim.planner.problem.PlanningProblem` and reports to a
:class:`~helixsim.planner.search.FlowSearch`. ``max_flow`` searches for the greatest maximum flow,
``simulated`` for the best figures in simulations; ``heuristics`` and ``milp`` are published
baselines.
"""
