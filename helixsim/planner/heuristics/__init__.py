"""The published baselines: heuristics that place layers in milliseconds.

The Helix paper (arXiv 2406.01566) compares itself with them; the searches here start from them.
"""

from helixsim.planner.heuristics.petals import petals, petals_ranges
from helixsim.planner.heuristics.replicas import replica_ranges, replicas
from helixsim.planner.heuristics.separate import (
    separate,
    separate_mixed,
    separate_ranges,
    types_left_out,
)
from helixsim.planner.heuristics.swarm import swarm, swarm_ranges

__all__ = [
    "petals",
    "petals_ranges",
    "replica_ranges",
    "replicas",
    "separate",
    "separate_mixed",
    "separate_ranges",
    "swarm",
    "swarm_ranges",
    "types_left_out",
]
