"""Faults of all kinds for a short while, under streams whose tokens are known."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.long]


@pytest.mark.parametrize("node_scheduler", [None, "vllm"])
def test_every_request_ends_right_or_with_its_error_and_all_nodes_come_back(
    tmp_path, node_scheduler
):
    from chaos import run_chaos

    found = run_chaos(
        tmp_path, 10, seed=3, streams=8, node_scheduler=node_scheduler, longest_freeze_s=5.0
    )
    assert not found.wrong
    assert found.ends["request: answer"] > 20
    assert sum(found.faults.values()) >= 3
