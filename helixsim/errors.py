"""The exceptions that helixsim raises on purpose.

Everything that a caller may want to catch derives from :class:`HelixError`. A message says
what is wrong, where (file, path in the file, row), and what would be right; the command line
prints it alone and exits with code 2.

.. code-block:: text

    HelixError
    ├── InputError            something that a user wrote cannot be used
    │   ├── ScenarioError     a scenario, cluster, placement, LLM or machine file
    │   ├── TraceError        a trace file
    │   └── ImportHelixError  files of the published artifact
    ├── PlacementError        a placement that the cluster cannot carry
    ├── NoRouteError          no way from the coordinator through all layers and back
    ├── OutputError           a result that cannot be written where it should go
    └── SimulationError       a run that cannot go on (for example a KV cache that overflows)
"""

from __future__ import annotations

from pathlib import Path


class HelixError(Exception):
    """Root of all errors that helixsim raises on purpose."""


class InputError(HelixError):
    """Something that a user wrote cannot be used.

    Parameters
    ----------
    message
        What is wrong and what would be right.
    file
        The file it stands in, if it stands in one.
    where
        The place in the file: a path such as ``cluster.nodes[3].type`` or ``row 17``.
    """

    def __init__(
        self, message: str, *, file: str | Path | None = None, where: str | None = None
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.where = where
        super().__init__(": ".join(part for part in (self.file, where, message) if part))


class ScenarioError(InputError):
    """A scenario, cluster, placement, LLM or machine-type file cannot be used."""


class TraceError(InputError):
    """A trace file cannot be used."""


class ImportHelixError(InputError):
    """A file of the published artifact cannot be used."""


class PlacementError(HelixError):
    """A placement cannot be carried by its cluster."""


class NoRouteError(HelixError):
    """No route leads from the coordinator through every layer and back."""


class OutputError(HelixError):
    """A result cannot be written where it should go."""


class SimulationError(HelixError):
    """A simulation cannot go on."""
