"""Many runs of a scenario: sweeps over its values, and the highest load that a cluster sustains.

:mod:`~helixsim.studies.sweep` and :mod:`~helixsim.studies.capacity` have the entry points.
"""
