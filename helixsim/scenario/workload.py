"""The workload of a scenario, with the files that it names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

from helixsim.errors import InputError, ScenarioError
from helixsim.scenario.files import POISSON, is_arrivals_name, is_lengths_name
from helixsim.scenario.trace import TraceReader
from helixsim.scenario.trace_spec import FILL, TraceSpec, whole_trace_spec
from helixsim.scenario.workload_spec import (
    DEFAULT_ARRIVALS,
    DEFAULT_LENGTHS,
    GammaArrivalsSpec,
    SlotArrivalsSpec,
    WorkloadSpec,
)
from helixsim.scenario.workload_values import (
    Arrivals,
    CommonPrefixes,
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
    SlotArrivals,
    Turns,
    Workload,
)
from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.files import read_lengths, read_slot_arrivals
from helixsim.traces.lengths import LengthModel, length_model, length_models
from helixsim.traces.patterns import ARRIVAL_PATTERNS, arrival_pattern
from helixsim.traces.values import Lengths, Trace
from helixsim.yaml_files import did_you_mean

Limitable = TypeVar("Limitable", Lengths | LengthModel, Trace)


def resolve_workload(spec: WorkloadSpec, file: Path, duration_s: float) -> Workload:
    """Turn the workload section of a scenario into a value.

    Parameters
    ----------
    spec
        The section.
    file
        The scenario file; other files are relative to its folder.
    duration_s
        Time during which the run sends requests.

    Raises
    ------
    InputError
        If a file is missing or cannot be used, limits leave out all requests, or no request of a
        trace arrives in the run.
    """
    resolver = _Resolver(spec, file)
    online = spec.mode == "online"
    traced = None
    if spec.trace is not None:
        traced = whole_trace_spec(
            spec.trace, rate_scale=spec.rate_scale, trace_format=spec.trace_format
        )
    shared, talks = spec.shared_prefix, spec.conversations
    return Workload(
        mode=spec.mode,
        lengths=None if traced else resolver.lengths(),
        arrivals=resolver.arrivals() if online and not traced else None,
        trace=resolver.trace(traced, duration_s) if traced else None,
        initial_requests=spec.initial_requests,
        spacing_s=spec.spacing,
        mean_tokens_per_s=spec.mean_tokens_per_s if online else None,
        mean_prompt_tokens=spec.mean_prompt_tokens,
        mean_output_tokens=spec.mean_output_tokens,
        rate_scale=(traced.scale or 1.0) if traced else spec.rate_scale,
        trace_fills_run=traced is not None and traced.repeat == FILL,
        shared_prefix=None if shared is None else CommonPrefixes(shared.tokens, shared.prompts),
        conversations=None if talks is None else Turns(talks.turns, talks.think_time),
    )


class _Resolver:
    def __init__(self, spec: WorkloadSpec, file: Path) -> None:
        self.spec = spec
        self.file = file

    def lengths(self) -> Lengths | LengthModel:
        name = self.spec.lengths or DEFAULT_LENGTHS
        found: Lengths | LengthModel
        if is_lengths_name(name):
            found = length_model(name)
        else:
            hint = f"no built-in lengths either; {did_you_mean(name, length_models())}"
            path = self._path("lengths", name, hint)
            try:
                found = read_lengths(path, self._tokenizer())
            except InputError as error:
                if error.file is not None:
                    raise
                raise self._error("tokenizer", error.message) from error
        return self._limited("lengths", found)

    def _tokenizer(self) -> str | None:
        """The tokenizer, by its path if the scenario's folder has it."""
        name = self.spec.tokenizer
        if name is None:
            return None
        path = self.file.parent / name
        return str(path) if path.is_file() else name

    def trace(self, spec: TraceSpec, duration_s: float) -> Trace:
        reader = TraceReader(spec, self.file, duration_s)
        return reader.read(lambda part: self._limited("trace", part))

    def arrivals(self) -> Arrivals:
        entry = DEFAULT_ARRIVALS if self.spec.arrivals is None else self.spec.arrivals
        if isinstance(entry, GammaArrivalsSpec):
            return GammaArrivals(entry.gamma.cv)
        if isinstance(entry, SlotArrivalsSpec):
            return self._slots("arrivals.slots.file", entry.slots.file, entry.slots.length)
        if entry == POISSON:
            return PoissonArrivals()
        if is_arrivals_name(entry):
            return PatternArrivals(arrival_pattern(entry))
        hint = f"no built-in arrivals either; {did_you_mean(entry, (POISSON, *ARRIVAL_PATTERNS))}"
        return self._slots("arrivals", entry, SLOT_S, hint)

    def _slots(self, key: str, name: str, slot_s: float, hint: str = "") -> SlotArrivals:
        counts = read_slot_arrivals(self._path(key, name, hint))
        if not any(counts):
            raise self._error(key, "contains no arrivals")
        return SlotArrivals(counts, slot_s)

    def _path(self, key: str, name: str, hint: str = "") -> Path:
        path = self.file.parent / name
        if not path.is_file():
            raise self._error(key, f"there is no file {path}" + (f", and {hint}" if hint else ""))
        return path

    def _limited(self, key: str, found: Limitable) -> Limitable:
        spec = self.spec
        if spec.max_prompt_tokens is None and spec.max_output_tokens is None:
            return found
        try:
            return found.limited(
                max_prompt_tokens=spec.max_prompt_tokens or math.inf,
                max_output_tokens=spec.max_output_tokens or math.inf,
            )
        except InputError as error:
            raise self._error(key, f"too few requests within the limits: {error}") from error

    def _error(self, key: str, message: str) -> ScenarioError:
        return ScenarioError(message, file=self.file, where=f"workload.{key}")
