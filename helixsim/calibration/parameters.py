"""The parameters of an engine as a vector for an optimiser.

Each is a factor on the initial engine, on a logarithmic scale: costs stay above zero, and doubling
is as far as halving. Zero is the initial engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import TypeVar

from helixsim.physics.engine import EngineCosts, GpuCosts

Costs = TypeVar("Costs", EngineCosts, GpuCosts)

SCALE = 0.3
"""A step of 1 multiplies or divides a parameter by e to this power: by 1.35."""

_COMMON = (
    "per_sequence_overhead_s",
    "prompt_s",
    "kv_block_s",
    "copy_bytes_per_s",
    "send_bytes_per_s",
    "message_s",
    "poll_layer_s",
    "delivery_jitter_s",
)
_OF_GPU = (
    "prefill_scale",
    "layer_pass_s",
    "prefill_pass_s",
    "multi_sequence_overhead_s",
    "output_pass_s",
    "kv_read_bytes_per_s",
)
_LEAST = {
    "per_sequence_overhead_s": 2e-6,
    "prompt_s": 2e-5,
    "kv_block_s": 2e-8,
    "message_s": 1e-6,
    "poll_layer_s": 5e-6,
    "delivery_jitter_s": 1e-6,
    "layer_pass_s": 2e-5,
    "prefill_pass_s": 2e-5,
    "multi_sequence_overhead_s": 2e-5,
    "output_pass_s": 1e-4,
}
"""Start of a cost of zero, which a factor would not change."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of an engine that are fitted.

    Attributes
    ----------
    start
        The initial engine.
    machine_types
        Types of the recorded runs; each has parameters of its own.
    """

    start: EngineCosts
    machine_types: tuple[str, ...]

    @classmethod
    def of(cls, start: EngineCosts, machine_types: Iterable[str]) -> Parameters:
        """All parameters that runs on these machine types can determine."""
        types = tuple(sorted(set(machine_types)))
        gpus = dict(start.gpus) | {name: _begun(start.for_machine(name), _OF_GPU) for name in types}
        return cls(_begun(start, _COMMON).model_copy(update={"gpus": gpus}), types)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the elements of the vector."""
        of_gpus = (f"{name}.{field}" for name in self.machine_types for field in self._fields(name))
        return (*_COMMON, *of_gpus)

    def engine(self, point: Sequence[float]) -> EngineCosts:
        """The engine at a point."""
        factors = iter([exp(SCALE * value) for value in point])
        common = {name: getattr(self.start, name) * next(factors) for name in _COMMON}
        gpus = dict(self.start.gpus)
        for name in self.machine_types:
            costs = self.start.for_machine(name)
            changed = {field: getattr(costs, field) * next(factors) for field in self._fields(name)}
            gpus[name] = costs.model_copy(update=changed)
        return self.start.model_copy(update={"gpus": gpus, **common})

    def _fields(self, machine_type: str) -> list[str]:
        """The costs of a machine type; a bandwidth that is not given is not fitted."""
        costs = self.start.for_machine(machine_type)
        return [field for field in _OF_GPU if getattr(costs, field) is not None]


def _begun(costs: Costs, names: Iterable[str]) -> Costs:
    return costs.model_copy(
        update={name: max(getattr(costs, name), _LEAST[name]) for name in names if name in _LEAST}
    )
