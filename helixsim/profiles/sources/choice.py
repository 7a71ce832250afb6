"""Choose where profiles come from, by the name of a source."""

from __future__ import annotations

from dataclasses import replace

from helixsim.errors import InputError
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import Architecture
from helixsim.profiles.sources.cache import ProfileCache, cache_folder
from helixsim.profiles.sources.measured import MeasuredSource
from helixsim.profiles.sources.operator_folder import TablesSource
from helixsim.profiles.sources.source import ProfileSource, SourcedTables, UnknownPairError

SOURCES = ("auto", "measured", "roofline", "tables:DIR")
"""Names of sources."""

_TABLES = "tables:"


def profile_source(name: str, cache: ProfileCache | None = None) -> ProfileSource:
    """The source of a name of :data:`SOURCES`.

    Parameters
    ----------
    name
        The name; with `auto`, measured times where there are any, otherwise the roofline.
    cache
        Keeps measured tables between runs; None for the user's folder.

    Raises
    ------
    InputError
        If there is no such source.
    """
    measured = MeasuredSource(cache or ProfileCache(cache_folder()))
    if name == "measured":
        return measured
    if name == "roofline":
        return _roofline()
    if name == "auto":
        return FirstKnown(measured, _roofline())
    if name.startswith(_TABLES) and name != _TABLES:
        return TablesSource(name.removeprefix(_TABLES))
    raise InputError(f"no source '{name}'; there are {', '.join(SOURCES)}")


def _roofline() -> ProfileSource:
    from helixsim.profiles.roofline.source import RooflineSource

    source: ProfileSource = RooflineSource()
    return source


class FirstKnown:
    """The first source that knows a pair; a :class:`.ProfileSource`.

    Parameters
    ----------
    first, other
        The sources. If the second one answers, its note says why the first one did not.
    """

    def __init__(self, first: ProfileSource, other: ProfileSource) -> None:
        self._first = first
        self._other = other

    def __call__(self, architecture: Architecture, machine: GpuMachine) -> SourcedTables:
        """The times."""
        try:
            return self._first(architecture, machine)
        except UnknownPairError as error:
            note = error.reason
        return replace(self._other(architecture, machine), note=note)
