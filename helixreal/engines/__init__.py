"""Engines by name, imported when they are made.

Further engines are registered with :func:`helixsim.register_engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from helixsim.errors import InputError
from helixsim.registry import EMULATED, ENGINES

if TYPE_CHECKING:
    from helixreal.engines.engine import Engine, EngineSpec


def make_engine(name: str, spec: EngineSpec) -> Engine:
    """Make an engine and load a model into it.

    Parameters
    ----------
    name
        One of `ENGINES`.
    spec
        The layers to load, and further settings.

    Raises
    ------
    InputError
        If there is no such engine, its packages are not installed, or it cannot use the model.
    """
    try:
        make = ENGINES.get(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise InputError(
            f"engine '{name}' needs {missing}: pip install 'helixsim[{name}]'"
        ) from error
    return cast("Engine", make(spec))


__all__ = ["EMULATED", "ENGINES", "make_engine"]
