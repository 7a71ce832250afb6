"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of published figures; tests that need it are skipped where it is absent."""
    default = ROOT / ".." / "shared" / "reference"
    folder = Path(os.environ.get("HELIX_REFERENCE_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set HELIX_REFERENCE_DATA")
    return folder
