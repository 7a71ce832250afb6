"""Engines by name; each is imported only when it is wanted.

Register your own with :func:`helixsim.register_engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from helixsim.errors import InputError
from helixsim.registry import Registry

if TYPE_CHECKING:
    from helixreal.engines.engine import Engine, EngineSpec

EMULATED = "emulated"
"""Name of the engine that only waits, as long as the scenario's performance model says."""


class EngineFactory(Protocol):
    """Makes an engine and loads its model; a class with this constructor is one."""

    def __call__(self, spec: EngineSpec) -> Engine:
        """Make it.

        Raises
        ------
        InputError
            If it cannot use the model.
        """
        ...


ENGINES: Registry[EngineFactory] = Registry(
    "engine",
    "helixreal.engines",
    {
        EMULATED: "helixreal.engines.emulated:EmulatedEngine",
        "torch": "helixreal.engines.torch_engine:TorchEngine",
        "vllm": "helixreal.engines.vllm_engine:VllmEngine",
    },
)
"""Engines by their name in an inventory or in ``--engine``."""


def make_engine(name: str, spec: EngineSpec) -> Engine:
    """Load a model into an engine that makes real tokens.

    Parameters
    ----------
    name
        One of `ENGINES`.
    spec
        What it is to hold.

    Raises
    ------
    InputError
        If there is no such engine, what it needs is not installed, or it cannot use the model.
    """
    try:
        make = ENGINES.get(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise InputError(
            f"engine '{name}' needs {missing}: pip install 'helixsim[{name}]'"
        ) from error
    return make(spec)
