"""Scenario files: what is served, on which machines, for which users, for how long.

:func:`helixsim.scenario.load.load_scenario` reads one and gives a
:class:`~helixsim.scenario.resolved.Scenario`: frozen, complete and checked.
"""
