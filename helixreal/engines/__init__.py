"""Engines by name; each is imported only when it is wanted."""

from __future__ import annotations

from helixreal.engines.engine import Engine, EngineSpec
from helixsim.errors import InputError

ENGINES = ("emulated", "torch", "vllm")


def make_engine(name: str, spec: EngineSpec) -> Engine:
    """Placeholder."""
    raise InputError(f"no engine {name} {spec}")
