"""Inventory files: the devices of a node."""

from __future__ import annotations

import pytest

from helixreal.inventory import load_inventory
from helixreal.local import worker_command
from helixsim.errors import ScenarioError


def inventory(folder, device):
    file = folder / "hosts.yaml"
    file.write_text(f"schema: 1\ncoordinator: 10.0.0.1\nnodes:\n  a:\n    device: {device}\n")
    return load_inventory(file)


@pytest.mark.parametrize(
    ("written", "device"),
    [
        ("cpu", "cpu"),
        ("'cuda:0'", "cuda:0"),
        ("['cuda:0', 'cuda:1']", "cuda:0,cuda:1"),
        ("'cuda:0,cuda:1'", "cuda:0,cuda:1"),
        ("[cpu, cpu]", "cpu,cpu"),
    ],
)
def test_one_device_or_several(tmp_path, written, device):
    entry = inventory(tmp_path, written).nodes["a"]
    assert entry.device == device
    command = worker_command("a", entry, "tcp://127.0.0.1:1")
    assert command[command.index("--device") + 1] == device


@pytest.mark.parametrize("written", ["[]", "[1, 2]", "[cpu, '']", "{cpu: 2}", "'cpu,'", "7"])
def test_what_is_no_device(tmp_path, written):
    with pytest.raises(ScenarioError, match=r"hosts\.yaml.*device"):
        inventory(tmp_path, written)
