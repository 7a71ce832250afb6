"""The workload of a scenario, with the files that it names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from helixsim.cluster import Cluster
from helixsim.errors import InputError, ScenarioError, TraceError
from helixsim.scenario.distribution_spec import DistributionSpec, to_distribution, to_times
from helixsim.scenario.files import CONSTANT, POISSON, is_arrivals_name, is_lengths_name
from helixsim.scenario.mean_request import with_mean_request
from helixsim.scenario.offered_load import offered_requests_per_s
from helixsim.scenario.rate_spec import to_rate
from helixsim.scenario.trace import TraceReader
from helixsim.scenario.trace_spec import FILL, TraceSpec, whole_trace_spec
from helixsim.scenario.workload_spec import (
    DEFAULT_ARRIVALS,
    DEFAULT_LENGTHS,
    MAX_TURNS,
    ClassSpec,
    ConversationsSpec,
    GammaArrivalsSpec,
    SharedPrefixSpec,
    SlotArrivalsSpec,
    WorkloadSpec,
)
from helixsim.scenario.workload_values import (
    AnyLengths,
    Arrivals,
    CommonPrefixes,
    EvenArrivals,
    GammaArrivals,
    PatternArrivals,
    PoissonArrivals,
    SlotArrivals,
    Turns,
    UserClass,
    Workload,
)
from helixsim.traces.arrivals import SLOT_S
from helixsim.traces.distributions import Distribution
from helixsim.traces.files import read_lengths, read_slot_arrivals
from helixsim.traces.lengths import IndependentLengths, LengthModel, length_model, length_models
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
        Time during which the run sends requests: rates that vary are averaged over it.

    Raises
    ------
    InputError
        If a file is missing or cannot be used, limits leave out all requests, or no request of a
        trace arrives in the run.
    """
    resolver = _Resolver(spec, file)
    online, synthetic = spec.is_online, spec.trace is None
    traced = None
    if spec.trace is not None:
        traced = whole_trace_spec(
            spec.trace, rate_scale=spec.rate_scale, trace_format=spec.trace_format
        )
    rate = spec.requests_per_s if online else None
    workload = Workload(
        mode="online" if online else "offline",
        lengths=resolver.lengths(spec) if synthetic and not spec.classes else None,
        arrivals=resolver.arrivals() if synthetic and online else None,
        trace=None if traced is None else resolver.trace(traced, duration_s),
        initial_requests=spec.initial_requests,
        spacing_s=spec.spacing,
        mean_tokens_per_s=spec.mean_tokens_per_s if online else None,
        requests_per_s=None if rate is None else to_rate(rate),
        rate_scale=spec.rate_scale if traced is None else traced.scale or 1.0,
        trace_fills_run=traced is not None and traced.repeat == FILL,
        shared_prefix=_prefixes(spec.shared_prefix),
        conversations=resolver.turns("", spec.conversations),
        classes=resolver.classes(),
    )
    if offered_requests_per_s(workload, duration_s) == 0:
        raise ScenarioError(
            f"the rate is 0 during the whole run of {duration_s:g} s",
            file=file,
            where="workload.classes" if rate is None else "workload.requests_per_s",
        )
    return with_mean_request(workload, spec, file, duration_s)


def region_mistakes(workload: Workload, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Classes of users in a region without a machine and without a front end: place and message."""
    known = dict.fromkeys(machine.region for machine in (*cluster.front_ends, *cluster))
    for users in workload.classes:
        if users.region is not None and users.region not in known:
            hint = did_you_mean(users.region, known)
            message = f"no machine and no front end is in the region '{users.region}'; {hint}"
            yield f"classes.{users.name}.region", message


def _prefixes(spec: SharedPrefixSpec | None) -> CommonPrefixes | None:
    return None if spec is None else CommonPrefixes(spec.tokens, spec.prompts)


class _Resolver:
    def __init__(self, spec: WorkloadSpec, file: Path) -> None:
        self.spec = spec
        self.file = file

    def classes(self) -> tuple[UserClass, ...]:
        """The classes of users, in order of their names."""
        spec, online = self.spec, self.spec.is_online
        return tuple(
            UserClass(
                name=name,
                share=users.share,
                requests_per_s=None
                if users.requests_per_s is None
                else to_rate(users.requests_per_s),
                lengths=self.lengths(users, f"classes.{name}."),
                conversations=self.turns(
                    f"classes.{name}.", users.conversations or spec.conversations
                )
                if online
                else None,
                shared_prefix=_prefixes(users.shared_prefix or spec.shared_prefix),
                priority=users.priority,
                region=users.region,
            )
            for name, users in sorted(spec.classes.items())
        )

    def turns(self, prefix: str, spec: ConversationsSpec | None) -> Turns | None:
        """Conversations; `prefix` is the place of their section."""
        if spec is None:
            return None
        where = f"{prefix}conversations.turns"
        turns = self._distribution(where, spec.turns)
        try:
            turns = turns.limited(1, MAX_TURNS)
        except InputError as error:
            raise self._error(where, error.message) from error
        return Turns(turns, to_times(spec.think_time), spec.system_prompt_tokens or 0)

    def lengths(self, users: WorkloadSpec | ClassSpec, prefix: str = "") -> AnyLengths:
        """The lengths of a class of users, or of all; `prefix` is the place of its section."""
        prompt = users.prompt_tokens or self.spec.prompt_tokens
        output = users.output_tokens or self.spec.output_tokens
        if prompt is None or output is None:
            return self._named_lengths()
        own_prompt, own_output = users.prompt_tokens is not None, users.output_tokens is not None
        return IndependentLengths(
            self._distribution(f"{prefix if own_prompt else ''}prompt_tokens", prompt),
            self._distribution(f"{prefix if own_output else ''}output_tokens", output),
        )

    def _distribution(self, key: str, entry: int | DistributionSpec) -> Distribution:
        if isinstance(entry, DistributionSpec) and entry.file is not None:
            self._path(f"{key}.file", entry.file)
        try:
            return to_distribution(entry, self.file.parent)
        except TraceError:
            raise
        except InputError as error:
            raise self._error(key, error.message) from error

    def _named_lengths(self) -> Lengths | LengthModel:
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
        entry = self.spec.arrivals
        if entry is None:
            entry = POISSON if self.spec.mean_tokens_per_s is None else DEFAULT_ARRIVALS
        if isinstance(entry, GammaArrivalsSpec):
            return GammaArrivals(entry.gamma.cv)
        if isinstance(entry, SlotArrivalsSpec):
            return self._slots("arrivals.slots.file", entry.slots.file, entry.slots.length)
        if entry == POISSON:
            return PoissonArrivals()
        if entry == CONSTANT:
            return EvenArrivals()
        if is_arrivals_name(entry):
            return PatternArrivals(arrival_pattern(entry))
        known = (POISSON, CONSTANT, *ARRIVAL_PATTERNS)
        hint = f"no built-in arrivals either; {did_you_mean(entry, known)}"
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
