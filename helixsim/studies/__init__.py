"""Many runs of a scenario: sweeps over its values, and the load that a cluster can bear.

:mod:`~helixsim.studies.sweep` and :mod:`~helixsim.studies.capacity` are the ways in.
"""
