"""Price and power of the machines of a scenario."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from helixsim.cluster import Cluster
from helixsim.profiles.library import shipped_machine_types
from helixsim.profiles.machine import MachineType
from helixsim.scenario.spec import ScenarioSpec
from helixsim.yaml_files import did_you_mean, mistakes_error


def dollars_per_hour(
    spec: ScenarioSpec, file: Path, cluster: Cluster, types: Mapping[str, MachineType]
) -> dict[str, float]:
    """Price of one machine of each type that has one: the scenario's, or the machine type's.

    Raises
    ------
    ScenarioError
        If the scenario has a price for no known type, or for some types of the cluster where
        others have none.
    """
    own, used = spec.dollars_per_hour, cluster.machine_mix()
    found = own | _missing(own, {name: types[name].dollars_per_hour for name in used})
    mistakes = list(unknown_types(own, types))
    if own:
        mistakes += unpriced_types(found, used)
    _check("dollars_per_hour", mistakes, file)
    return found


def watts(
    spec: ScenarioSpec, file: Path, cluster: Cluster, types: Mapping[str, MachineType]
) -> dict[str, float]:
    """Power of one machine of each type of which it is known.

    Raises
    ------
    ScenarioError
        If the scenario has the power of no known type.
    """
    own = spec.watts
    _check("watts", list(unknown_types(own, types)), file)
    return own | _missing(own, {name: types[name].power_w for name in cluster.machine_mix()})


def _missing(own: Mapping[str, float], usual: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in usual.items() if value is not None and name not in own}


def unknown_types(
    figures: Iterable[str], types: Mapping[str, MachineType]
) -> Iterator[tuple[str, str]]:
    """Find names with a figure that no machine type has: names, and messages."""
    known = tuple(dict.fromkeys((*types, *shipped_machine_types())))
    for name in figures:
        if name not in known:
            yield name, f"no machine type '{name}'; {did_you_mean(name, known)}"


def unpriced_types(prices: Mapping[str, float], used: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find machine types of the cluster without a price: names, and messages."""
    for name in used:
        if name not in prices:
            yield name, "this key is missing: the cluster has such machines (0 if they are free)"


def _check(section: str, mistakes: list[tuple[str, str]], file: Path) -> None:
    if mistakes:
        raise mistakes_error([(f"{section}.{name}", text) for name, text in mistakes], file)
