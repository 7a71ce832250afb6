"""Engines are optional: tests of one that is not installed are skipped, and say so.

Where the environment variable HELIX_REQUIRE_ENGINES is set, as in a job that installs them, they
fail instead.
"""

import os
from importlib.util import find_spec

import pytest
from live import StandingWorkers

NEEDS = {
    "torch": (
        ("torch", "safetensors", "transformers"),
        "needs torch and transformers: pip install 'helixsim[torch]' transformers",
    ),
    "vllm": (("vllm",), "needs vLLM: pip install 'helixsim[vllm]'"),
}


def pytest_runtest_setup(item):
    for marker, (modules, reason) in NEEDS.items():
        if item.get_closest_marker(marker) is None:
            continue
        if all(find_spec(module) is not None for module in modules):
            continue
        if os.environ.get("HELIX_REQUIRE_ENGINES"):
            pytest.fail(f"{reason} (HELIX_REQUIRE_ENGINES is set)", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def standing():
    """Workers that go from one cluster of a module to the next."""
    workers = StandingWorkers()
    yield workers
    workers.close()
