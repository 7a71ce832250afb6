"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from hypothesis import settings

from helixsim.control.coordinator import Coordinator
from helixsim.models.simulation import Simulation

# Tests start hundreds of processes: without compiled modules, each would compile helixsim anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test asserts wall time: an example may wait for other work of the machine.
settings.register_profile("helixsim", deadline=None)
settings.load_profile("helixsim")

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that none of them ends alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published figures; without it, the tests that need it are skipped."""
    folder = Path(
        os.environ.get("HELIX_REFERENCE_DATA") or PROJECT_ROOT.parent / "shared" / "reference"
    )
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}; HELIX_REFERENCE_DATA can name the folder")
    return folder


@pytest.fixture(scope="module")
def checked_runs():
    """Coordinators check their invariants after every event, and so do all nodes of their run."""
    nodes_of = WeakKeyDictionary()
    handle, make = Coordinator.handle, Simulation.__init__

    def handle_and_check(coordinator, event, now):
        actions = handle(coordinator, event, now)
        coordinator.validate()
        for node in nodes_of.get(coordinator, ()):
            node.scheduler.validate()
        return actions

    def make_and_note(simulation, *arguments, **settings):
        make(simulation, *arguments, **settings)
        nodes_of[simulation.coordinator] = simulation.nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "handle", handle_and_check)
        patch.setattr(Simulation, "__init__", make_and_note)
        yield
