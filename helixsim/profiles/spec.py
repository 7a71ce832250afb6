"""Models of machine files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.errors import InputError
from helixsim.hardware.catalogue import load_gpu
from helixsim.profiles.curve_spec import CurveSpec
from helixsim.profiles.kv_memory import KvMemory
from helixsim.profiles.machine import (
    LLM,
    Capacity,
    LatencyProfile,
    MachineProfile,
    MachineType,
    PlannerHints,
)
from helixsim.profiles.operator_spec import OperatorsSpec
from helixsim.profiles.operators import OperatorTables
from helixsim.profiles.planning_curves import CONTEXT_PER_DECODE, planning_curves
from helixsim.profiles.sources.source import FiguresKind
from helixsim.yaml_files import Bytes, BytesPerSecond, FileModel, located_error

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_MAX_LAYERS = 10_000

Name = Annotated[str, Field(pattern=_NAME)]
Count = Annotated[int, Field(ge=1, le=2**53)]
LayerCount = Annotated[int, Field(ge=1, le=_MAX_LAYERS)]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=_MAX_LAYERS)]


def _shape(value: object) -> str:
    return "column" if isinstance(value, list | tuple) else "number"


Limit = Annotated[
    Annotated[Count, Tag("number")] | Annotated[Counts, Tag("column")], Discriminator(_shape)
]
"""A number for all layer counts, or a column: one number for each entry of `kv.layers`."""


class KvSpec(FileModel):
    """KV capacity beside k layers: listed, or derived from the memory."""

    layers: Counts | None = Field(default=None, description="Numbers of layers, from 1 up.")
    token_layers: Counts | None = Field(
        default=None, description="KV capacity for each number of layers, in tokens x layers."
    )
    from_memory: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Usable share of the memory; the KV cache is this share less the weights.",
    )
    copies: Annotated[float, Field(ge=1, le=1024)] = Field(
        default=1.0,
        description="With from_memory: how many times the machine stores each token's keys and "
        "values, as tensor parallelism does over more GPUs than there are KV heads.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.from_memory is not None:
            if self.layers is not None or self.token_layers is not None:
                raise ValueError("give either from_memory or layers with token_layers")
            return self
        if self.layers is None or self.token_layers is None:
            raise ValueError("give either from_memory or layers with token_layers")
        if len(self.layers) != len(self.token_layers):
            raise located_error(
                "token_layers",
                f"has {len(self.token_layers)} entries, but layers has {len(self.layers)}",
            )
        if self.layers[0] != 1:
            raise located_error("layers[0]", f"must be 1, not {self.layers[0]}")
        for index, (before, after) in enumerate(pairwise(self.layers), start=1):
            if after <= before:
                raise located_error(
                    f"layers[{index}]", f"layers must rise, but {after} follows {before}"
                )
        return self

    def memory(self, memory_bytes: float, llm: LLM | None) -> KvMemory | None:
        """The memory that capacities follow from; None if they are listed.

        Parameters
        ----------
        memory_bytes
            Memory of the whole machine.
        llm
            The LLM; needed if capacities follow from the memory.
        """
        if self.from_memory is None or llm is None:
            return None
        return KvMemory(llm, self.from_memory * memory_bytes, self.copies)

    def token_layers_by_count(self, memory: KvMemory | None) -> dict[int, int]:
        """KV capacity by number of layers held, in tokens x layers."""
        if memory is not None:
            return memory.by_count()
        return dict(zip(self.layers or (), self.token_layers or (), strict=True))


class BatchLimitsSpec(FileModel):
    """Limits of one batch."""

    max_prompts: Limit = 1
    max_prompt_tokens: Limit = 2048
    max_decode_tokens: Limit = 256
    max_decode_context: Limit | None = Field(
        default=None,
        description="Largest sum of the decodes' context lengths. Default: "
        f"{CONTEXT_PER_DECODE} x max_decode_tokens.",
    )

    def columns(self) -> dict[str, int]:
        """Names and lengths of the limits that are columns."""
        limits = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: len(limit) for name, limit in limits.items() if isinstance(limit, tuple)}

    def capacity(self, row: int, kv_token_layers: int) -> Capacity:
        """The limits in one row of the columns, next to the KV capacity."""
        decode_tokens = _at(self.max_decode_tokens, row)
        return Capacity(
            kv_token_layers=kv_token_layers,
            max_prompts=_at(self.max_prompts, row),
            max_prompt_tokens=_at(self.max_prompt_tokens, row),
            max_decode_tokens=decode_tokens,
            max_decode_context=CONTEXT_PER_DECODE * decode_tokens
            if self.max_decode_context is None
            else _at(self.max_decode_context, row),
        )


def _at(limit: int | tuple[int, ...], row: int) -> int:
    return limit[row] if isinstance(limit, tuple) else limit


class PlannerSpec(FileModel):
    """Inputs of the throughput estimate; missing values are derived."""

    typical_layers: LayerCount | None = None
    crowded_typical_layers: LayerCount | None = None
    start_performance: Annotated[float, Field(gt=0)] | None = None

    def to_hints(
        self, max_layers: int, prefill: LatencyProfile, decode: LatencyProfile
    ) -> PlannerHints:
        """Derive missing values like the published figures.

        Crowded clusters: all layers that the type may hold; other clusters: two thirds of
        them. Performance: close to a thousandth of the machine's performance with a batch of
        one prompt of 750 tokens and 240 decodes.
        """
        batch_ms = 1000 * (prefill(750) + decode(240))
        return PlannerHints(
            typical_layers=self.typical_layers or max(1, round(max_layers * 2 / 3)),
            crowded_typical_layers=self.crowded_typical_layers or max_layers,
            start_performance=self.start_performance or (750 + 240) / batch_ms,
        )


class ServingSpec(FileModel):
    """Latency profile, KV cache and batch limits of a machine for one LLM."""

    figures: FiguresKind | None = Field(
        default=None,
        description="What the times stand on: kernels that others `measured`, operator `tables` of "
        "the pair itself, or a `roofline` reckoned from the data sheet. Runs say so.",
    )
    prefill: CurveSpec | None = None
    decode: CurveSpec | None = None
    operators: OperatorsSpec | None = Field(
        default=None,
        description="Times of the operators of a layer, instead of `prefill` and `decode`.",
    )
    max_layers: LayerCount | None = Field(
        default=None,
        description="The most layers that a planner may assign. Default: the layers that fit into "
        "half of the memory with kv.from_memory, otherwise the last entry of kv.layers.",
    )
    kv: KvSpec
    batch_limits: BatchLimitsSpec = BatchLimitsSpec()
    planner: PlannerSpec = PlannerSpec()

    @property
    def needs_llm(self) -> bool:
        """Whether the profile follows only with the sizes of the LLM."""
        return self.kv.from_memory is not None or self.operators is not None

    def curves(
        self, llm: LLM | None
    ) -> tuple[LatencyProfile, LatencyProfile, OperatorTables | None]:
        """Profiles of prefills and decodes, and the tables that they follow from, if any."""
        if self.operators is not None and llm is not None:
            tables = self.operators.to_tables()
            if len(tables.kind_of_layer) not in (0, llm.num_layers):
                raise InputError(
                    f"has {len(tables.kind_of_layer)} entries, but {llm.name} has "
                    f"{llm.num_layers} layers",
                    where="operators.kind_of_layer",
                )
            return *planning_curves(tables, llm), tables
        assert self.prefill is not None
        assert self.decode is not None
        return self.prefill.to_profile(), self.decode.to_profile(), None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_form()
        for name, length in self.batch_limits.columns().items():
            if self.kv.layers is None:
                raise located_error(
                    f"batch_limits.{name}",
                    "must be a number, not a list, with kv.from_memory",
                )
            if length != len(self.kv.layers):
                raise located_error(
                    f"batch_limits.{name}",
                    f"has {length} entries, but kv.layers has {len(self.kv.layers)}",
                )
        if self.kv.layers is None:
            return self
        max_layers = self.max_layers or self.kv.layers[-1]
        absent = sorted(set(range(1, max_layers + 1)) - set(self.kv.layers))
        if absent:
            raise located_error(
                "kv.layers",
                f"must have every count up to max_layers ({max_layers}), but {absent[0]} is "
                "missing",
            )
        return self

    def _check_form(self) -> None:
        """Times are given in exactly one of two forms."""
        for name in ("prefill", "decode"):
            given = getattr(self, name) is not None
            if given and self.operators is not None:
                raise located_error(name, "give either operators or prefill with decode")
            if not given and self.operators is None:
                raise located_error(name, "this key is missing (or operators instead)")


class MachineSpec(FileModel):
    """A machine file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["machine"]
    name: Name
    source: str = Field(default="", description="Source of the figures.")
    memory: Bytes
    nic: BytesPerSecond = Field(
        description="Bandwidth of the network interface, in each direction."
    )
    disk: BytesPerSecond = Field(description="Bandwidth for reading weights.")
    gpu: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="Its GPU in the catalogue (`helixsim gpus`), for its price and power.",
    )
    gpus: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="How many of them it has."
    )
    dollars_per_hour: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        default=None, description="Price of the machine. Default: that of its GPUs."
    )
    watts: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        default=None, description="Power of the machine. Default: the limits of its GPUs."
    )
    llms: Annotated[dict[Name, ServingSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("memory", "nic", "disk"):
            if getattr(self, key) == 0:
                raise located_error(key, "must be above zero")
        if self.gpu is None and self.gpus > 1:
            raise located_error("gpus", "says how many of `gpu` it has; give gpu, too")
        return self

    def to_machine_type(self, llms: Mapping[str, LLM]) -> MachineType:
        """Turn the file into the value that helixsim works with.

        Parameters
        ----------
        llms
            The known LLMs. A profile that derives its KV cache from the memory, or its times
            from operators, needs its LLM; without it, the profile is left out.

        Raises
        ------
        InputError
            If the memory is too small for a profile, or a typical number of layers too large;
            `where` is the path in the file.
        """
        price, power = self._price_and_power()
        return MachineType(
            name=self.name,
            memory_bytes=self.memory,
            nic_bytes_per_s=self.nic,
            disk_bytes_per_s=self.disk,
            profiles={
                name: self._profile(name, serving, llms.get(name))
                for name, serving in self.llms.items()
                if name in llms or not serving.needs_llm
            },
            dollars_per_hour=price,
            power_w=power,
        )

    def _price_and_power(self) -> tuple[float | None, float | None]:
        """Dollars per hour and watts: its own, or of its GPUs."""
        price, power = self.dollars_per_hour, self.watts
        if self.gpu is None:
            return price, power
        try:
            gpu = load_gpu(self.gpu)
        except InputError as error:
            raise InputError(error.message, where="gpu") from error
        if price is None and gpu.dollars_per_hour is not None:
            price = self.gpus * gpu.dollars_per_hour
        if power is None and gpu.power_w is not None:
            power = self.gpus * gpu.power_w
        return price, power

    def _profile(self, llm_name: str, serving: ServingSpec, llm: LLM | None) -> MachineProfile:
        memory = serving.kv.memory(self.memory, llm)
        kv = serving.kv.token_layers_by_count(memory)
        where = f"llms.{llm_name}"
        if not kv:
            raise InputError(
                f"{self.memory / 1e9:g} GB x {serving.kv.from_memory} are too small for a layer of "
                f"{llm_name} and a KV cache",
                where=f"{where}.kv.from_memory",
            )
        max_layers = serving.max_layers
        if max_layers is None:
            max_layers = max(kv)
            if serving.kv.from_memory is not None and llm is not None:
                half = int(self.memory / 2 // llm.layer_bytes)
                max_layers = min(max_layers, max(1, half))
        if max_layers not in kv:
            raise InputError(
                f"its memory holds {max(kv)} layers of {llm_name} at most, not {max_layers}",
                where=f"{where}.max_layers",
            )
        try:
            prefill, decode, operators = serving.curves(llm)
        except InputError as error:
            raise InputError(error.message, where=f"{where}.{error.where}") from error
        hints = serving.planner.to_hints(max_layers, prefill, decode)
        for key in ("typical_layers", "crowded_typical_layers"):
            if (count := getattr(hints, key)) > max_layers:
                raise InputError(
                    f"must not exceed max_layers ({max_layers}), but is {count}",
                    where=f"{where}.planner.{key}",
                )
        return MachineProfile(
            machine_type=self.name,
            llm=llm_name,
            prefill=prefill,
            decode=decode,
            capacities={
                count: serving.batch_limits.capacity(row, kv[count]) for row, count in enumerate(kv)
            },
            max_layers=max_layers,
            hints=hints,
            operators=operators,
            kv_memory=memory,
            figures=serving.figures,
            source=self.source,
        )
