"""Engines by name; each is imported only when it is wanted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from helixsim.errors import InputError

if TYPE_CHECKING:
    from helixreal.engines.engine import Engine, EngineSpec

_CLASSES = {
    "torch": ("helixreal.engines.torch_engine", "TorchEngine"),
    "vllm": ("helixreal.engines.vllm_engine", "VllmEngine"),
}
ENGINES = tuple(_CLASSES)
"""Names of the engines that make real tokens."""


def make_engine(name: str, spec: EngineSpec) -> Engine:
    """Load a model into an engine.

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
    if name not in _CLASSES:
        raise InputError(f"there is no engine '{name}'; there are {', '.join(ENGINES)}")
    module, class_name = _CLASSES[name]
    try:
        make = getattr(import_module(module), class_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "helixreal":
            raise
        raise InputError(
            f"engine '{name}' needs {missing}: pip install 'helixsim[{name}]'"
        ) from error
    engine: Engine = make(spec)
    return engine
