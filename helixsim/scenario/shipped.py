"""The scenarios that ship with helixsim."""

from __future__ import annotations

from pathlib import Path

from helixsim.errors import ScenarioError
from helixsim.yaml_files import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """Folder of the shipped scenarios: in the package where it is installed, else beside it."""
    installed = _PACKAGE / "shipped_scenarios"
    return installed if installed.is_dir() else _PACKAGE.parent / "scenarios"


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that ship with helixsim, sorted."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.yaml")))


def find_scenario(path: str | Path) -> Path:
    """Find the file of a scenario.

    Parameters
    ----------
    path
        A file, or the name of a shipped scenario.

    Raises
    ------
    ScenarioError
        If it is neither.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    name, names = str(path), shipped_scenarios()
    if name not in names:
        raise ScenarioError(
            f"no scenario '{name}' ships with helixsim; {did_you_mean(name, names)} "
            "(for your own, give its file, ending in .yaml)"
        )
    return shipped_folder() / f"{name}.yaml"
