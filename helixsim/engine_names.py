"""The engines of helixreal by name: what can be registered, without importing any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helixsim.registry import Registry

EMULATED = "emulated"
"""Name of the engine that only waits, as long as the scenario's performance model says."""

ENGINES: Registry[Callable[[Any], Any]] = Registry(
    "engine",
    "helixreal.engines",
    {
        EMULATED: "helixreal.engines.emulated:EmulatedEngine",
        "torch": "helixreal.engines.torch_engine:TorchEngine",
        "vllm": "helixreal.engines.vllm_engine:VllmEngine",
    },
)
"""Makers of engines: called with a :class:`helixreal.engines.engine.EngineSpec`, they load a model
into a :class:`helixreal.engines.engine.Engine`."""


def register_engine(name: str, factory: Callable[[Any], Any]) -> None:
    """Let inventories and ``--engine`` name an engine, in this process.

    Workers are processes of their own: an engine for them comes with an installed package, or is
    named as ``module:Class``.

    Raises
    ------
    InputError
        If the name is taken, or is none.
    """
    ENGINES.register(name, factory)
