"""Bounds on served tokens: what the simulated engine can serve at best, whatever is decided.

`request_mix` is the workload as means, `pass_costs` what passes of any size cost a machine at
least, `node_rates` what one node serves at most, `of_placement` what a placement serves, and
:mod:`helixsim.planner.served_bound` what any placement of a cluster serves.
"""
