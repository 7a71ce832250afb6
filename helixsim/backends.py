"""Where tasks run: on this machine, or on a Ray cluster (``pip install 'helixsim[ray]'``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from helixsim.errors import InputError, SimulationError

Backend = Literal["local", "ray"]
"""``local`` for processes of this machine, ``ray`` for the tasks of a Ray cluster."""


def check_backend(backend: str) -> None:
    """Check that a backend is known and installed.

    Raises
    ------
    InputError
        If it is not.
    """
    if backend not in ("local", "ray"):
        raise InputError(f"no backend '{backend}'; there are local and ray", where="backend")
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("Ray is not installed; pip install 'helixsim[ray]'", where="backend ray")


@contextmanager
def connected_ray() -> Iterator[Any]:
    """The module ``ray``, connected to a cluster.

    That of the environment variable ``RAY_ADDRESS``, else one that runs here, else a new one that
    ends with the block.

    Raises
    ------
    InputError
        If Ray is not installed.
    SimulationError
        If no cluster can be reached or started, or Ray reports an error within the block.
    """
    check_backend("ray")
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SimulationError(f"no Ray cluster can be reached or started: {error}") from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise SimulationError(f"Ray could not carry out a run: {error}") from error
    finally:
        if ours:
            ray.shutdown()


def of_ray(reference: Any) -> Any:  # noqa: ANN401  (Ray has no types)
    """The object of a reference, in a task of a Ray cluster."""
    import ray

    return ray.get(reference)
