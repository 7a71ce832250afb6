"""The exceptions of helixsim.

All of them derive from :class:`HelixError`. A message states what is wrong, where (file, path in
the file, row), and what would be right; the command line prints only the message and exits with
code 2.

.. code-block:: text

    HelixError
    ├── InputError            invalid input of a user
    │   ├── ScenarioError     a scenario, cluster, placement, LLM or machine file
    │   ├── TraceError        a trace file
    │   └── ImportHelixError  files of the published artifact
    ├── PlacementError        a placement that is invalid for the cluster
    ├── NoRouteError          no route from the coordinator through all layers and back
    ├── OutputError           a result that cannot be written
    └── SimulationError       a run that cannot continue (for example a KV cache that overflows)
"""

from __future__ import annotations

from pathlib import Path


class HelixError(Exception):
    """Root of all errors of helixsim."""


class InputError(HelixError):
    """Invalid input of a user.

    Parameters
    ----------
    message
        What is wrong and what would be right.
    file
        The file with the error, if there is one.
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
    """A placement is invalid for its cluster."""


class NoRouteError(HelixError):
    """No route leads from the coordinator through every layer and back."""


class OutputError(HelixError):
    """A result cannot be written."""


class SimulationError(HelixError):
    """A simulation cannot continue."""
