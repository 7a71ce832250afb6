"""What the tests of scenarios share."""

import pytest
import yaml
from scenario_data import SCENARIO, changed

from helixsim.scenario.load import load_scenario


@pytest.fixture
def scenario_file(tmp_path):
    """Write a working scenario, with changes, and give its file."""

    def write(changes=None, name="mine.yaml", base=SCENARIO):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(yaml.safe_dump(changed(base, changes or {}), sort_keys=False))
        return file

    return write


@pytest.fixture
def load(scenario_file):
    """Load a working scenario, with changes to its file and values set."""

    def load(changes=None, *overrides):
        return load_scenario(scenario_file(changes), overrides)

    return load
