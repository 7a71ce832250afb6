"""The published baselines: rules of thumb that place layers in milliseconds.

They are what the Helix paper (arXiv 2406.01566) compares itself with, and starts for a search
that does better.
"""

from helixsim.planner.heuristics.petals import petals, petals_ranges
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
    "separate",
    "separate_mixed",
    "separate_ranges",
    "swarm",
    "swarm_ranges",
    "types_left_out",
]
