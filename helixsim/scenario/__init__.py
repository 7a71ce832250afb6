"""Scenario files: LLM, machines, placement, routing policy, workload and duration of a run.

:func:`helixsim.scenario.load.load_scenario` reads one and returns a
:class:`~helixsim.scenario.resolved.Scenario`: frozen, complete and checked.
"""
