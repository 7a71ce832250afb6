"""Property tests check the invariants of the control plane after every event."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _checked(checked_runs):
    """Use the fixture in every module here."""
