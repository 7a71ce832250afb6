"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published figures; without it, the tests that need it are skipped."""
    folder = Path(
        os.environ.get("HELIX_REFERENCE_DATA") or PROJECT_ROOT.parent / "shared" / "reference"
    )
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}; HELIX_REFERENCE_DATA can name the folder")
    return folder
