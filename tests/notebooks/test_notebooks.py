"""The notebooks run from top to bottom, and are kept without what they showed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

SHORTER = {
    "02-placement-study": {
        "time_limit_s=8": "time_limit_s=2",
        '"warmup": "20 s", "duration": "140 s"': '"warmup": "5 s", "duration": "40 s"',
    },
    "03-scheduling-study": {
        '"warmup": "60 s", "duration": "160 s"': '"warmup": "5 s", "duration": "20 s"'
    },
    "05-capacity-and-cost": {
        '"warmup": "60 s", "duration": "300 s"': '"warmup": "20 s", "duration": "100 s"'
    },
}
"""Notebook -> what makes it quicker: text in its code, and what the test has in its place."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_are_there():
    assert len(NOTEBOOKS) == 5


@every_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(path, as_version=4)
    for text, shorter in SHORTER.get(path.stem, {}).items():
        (cell,) = (cell for cell in notebook.cells if text in cell.source)
        cell.source = cell.source.replace(text, shorter)
    with warnings.catch_warnings():
        # Jupyter's own, of its sockets and event loops.
        warnings.simplefilter("ignore")
        NotebookClient(
            notebook,
            timeout=240,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in shown), "no plot was drawn"


@every_notebook
def test_it_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
