"""The SimPy models: what computes, what transmits, and what carries requests around.

They carry out what the deciding modules say (routes, batches, admission) and decide nothing
themselves. The paths that run once per batch are written for speed: a re-armed event instead
of a process, closed forms instead of events where the outcome is certain beforehand.
"""
