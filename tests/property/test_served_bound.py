"""No simulated placement serves more than its bound, nor more than the bound of its cluster.

``tests/bench/served_bound.py`` holds thousands of cases against the bounds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from served_cases import held_against_bounds, random_case

SEEDS = (3, 17, 29, 42, 58, 66, 90)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_placement_serves_more_than_its_bounds(seed):
    scenario = random_case(seed)
    short = replace(scenario, run=replace(scenario.run, warmup_s=10.0, duration_s=50.0))
    found = held_against_bounds(short)
    assert found is not None
    assert found.decodes_per_s <= found.placement_bound * (1 + 1e-9)
    assert found.decodes_per_s <= found.cluster_bound * (1 + 1e-9)
    assert found.placement_bound <= found.cluster_bound * (1 + 1e-3)
