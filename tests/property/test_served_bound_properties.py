"""No simulated placement serves more than its bound, nor more than the bound of its cluster.

``tests/bench/served_bound.py`` holds thousands of cases against the bounds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from served_cases import held_against_bounds, random_case

SEEDS = (100, 102, 103, 104, 107, 108, 109, 111, 113, 114, 116, 119, 120, 122, 123, 125, 127, 128)
"""All physics, node schedulers and presets; 100 and 127 serve 97 % of the placement's bound."""


@pytest.mark.parametrize("seed", SEEDS)
def test_no_placement_serves_more_than_its_bounds(seed):
    scenario = random_case(seed)
    short = replace(scenario, run=replace(scenario.run, warmup_s=10.0, duration_s=50.0))
    found = held_against_bounds(short)
    assert found is not None
    assert found.decodes_per_s <= found.placement_bound * (1 + 1e-9)
    assert found.decodes_per_s <= found.cluster_bound * (1 + 1e-9)
    assert found.placement_bound <= found.cluster_bound * (1 + 1e-3)


def test_bounds_are_near_what_the_best_placements_serve():
    shares = []
    for seed in (100, 104, 127):
        scenario = random_case(seed)
        short = replace(scenario, run=replace(scenario.run, warmup_s=10.0, duration_s=50.0))
        found = held_against_bounds(short)
        assert found is not None
        shares.append(found.decodes_per_s / found.placement_bound)
    assert min(shares) > 0.9
