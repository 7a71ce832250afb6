"""The keys of a scenario file, and their conversion to values."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.profiles.spec import Name
from helixsim.scenario.cluster_spec import ClusterSpec
from helixsim.scenario.generator_spec import GeneratorSpec
from helixsim.scenario.keys import Duration, ExtensionName, FileName
from helixsim.scenario.llm_section import LLMSection
from helixsim.scenario.resolved import RunSettings
from helixsim.scenario.scheduler_spec import SchedulerSpec
from helixsim.scenario.section_specs import FaultsSpec, PlacementSpec, Price, SloSpec, Watts
from helixsim.scenario.workload_spec import WorkloadSpec
from helixsim.yaml_files import FileModel, Seconds, located_error

Interval = Annotated[Seconds, Field(ge=0.001)]


# -- cluster and placement: in the scenario, or in separate files -----------------------------
# Tags of unions are in angle brackets so that none is the name of a key in the file.


class ClusterInFile(FileModel):
    """A cluster in a file of its own."""

    file: FileName


class GeneratedCluster(FileModel):
    """A cluster that is generated."""

    generate: Annotated[
        Annotated[FileName, Tag("<file>")] | Annotated[GeneratorSpec, Tag("<inline>")],
        Discriminator(lambda value: "<file>" if isinstance(value, str) else "<inline>"),
    ] = Field(description="The generator's settings, or a generator file.")


class PlacementInFile(FileModel):
    """A placement in a file of its own."""

    file: FileName
    allow_overcommitted_layers: bool | None = Field(
        default=None, description="In place of the value in the file."
    )


def _section_shape(value: object) -> str:
    if isinstance(value, ClusterInFile | PlacementInFile):
        return "<file>"
    if isinstance(value, GeneratedCluster):
        return "<generate>"
    keys = value if isinstance(value, dict) else {}
    return next((f"<{key}>" for key in ("file", "generate") if key in keys), "<inline>")


ClusterSection = Annotated[
    Annotated[ClusterInFile, Tag("<file>")]
    | Annotated[GeneratedCluster, Tag("<generate>")]
    | Annotated[ClusterSpec, Tag("<inline>")],
    Discriminator(_section_shape),
]
PlacementSection = Annotated[
    Annotated[PlacementInFile, Tag("<file>")] | Annotated[PlacementSpec, Tag("<inline>")],
    Discriminator(_section_shape),
]


# -- run and the whole -----------------------------------------------------------------------


class RunSpec(FileModel):
    """Length of the run and sampling."""

    seed: Annotated[int, Field(ge=0, le=2**63)] = 0
    warmup: Seconds | None = Field(
        default=None,
        description="Left out of the metrics. Default: a tenth of the duration if a node is named "
        "by its `gpu`, otherwise nothing.",
    )
    duration: Duration = Field(
        default=600.0, description="Time during which requests are sent, warm-up included."
    )
    drain: bool = Field(default=False, description="Go on until every request has ended.")
    sample_interval: Interval = Field(default=10.0, description="Between samples of gauges.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup is not None and self.warmup >= self.duration:
            raise located_error(
                "warmup",
                f"must be below the duration of {self.duration:g} s, which it is a part of, but "
                f"is {self.warmup:g} s",
            )
        return self

    def to_settings(self, default_warmup_share: float) -> RunSettings:
        """Turn it into a value, with this share of the duration as warm-up if none is given."""
        default_s = default_warmup_share * self.duration
        return RunSettings(
            seed=self.seed,
            warmup_s=default_s if self.warmup is None else self.warmup,
            duration_s=self.duration,
            drain=self.drain,
            sample_interval_s=self.sample_interval,
        )


class ScenarioSpec(FileModel):
    """A scenario file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    description: str = ""
    llm: LLMSection = Field(
        description="Name of a shipped LLM; a config.json or the folder with it; or an LLM file "
        "ending in .yaml."
    )
    machine_types: Annotated[tuple[FileName, ...], Field(strict=False)] = Field(
        default=(), description="Files of machine types besides the shipped ones."
    )
    cluster: ClusterSection
    placement: PlacementSection | None = Field(
        default=None,
        description="The layers of each node. Default: the simple rule `replicas` "
        "([planning](planning.md#methods)).",
    )
    scheduler: SchedulerSpec = SchedulerSpec()
    workload: WorkloadSpec
    faults: FaultsSpec = FaultsSpec()
    gpus: Annotated[tuple[FileName, ...], Field(strict=False)] = Field(
        default=(),
        description="Files of [GPUs](profiles.md#the-keys-of-a-gpu-file) besides the catalogue.",
    )
    profiles: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        default="auto",
        description="Where the times of nodes with `gpu` come from: `measured` by others (needs "
        "the extra `profiles`), `roofline`, from the data sheet, `tables:DIR`, from operator "
        "tables; `auto`: measured where there are such times, otherwise the roofline.",
    )
    physics: ExtensionName | None = Field(
        default=None,
        description="Performance model: `paper`, `calibrated`, or one of your own "
        "([recipes](recipes.md)). Default: `calibrated` if a node is named by its `gpu`, otherwise "
        "`paper`.",
    )
    engine: FileName | None = Field(
        default=None,
        description="The serving engine, for the calibrated physics: the name of a shipped "
        "engine, or a file ending in .yaml, such as `helixsim calibrate` writes. Default: "
        "`helix-prototype` if all machine types are from the Helix paper, otherwise `vllm`.",
    )
    run: RunSpec = RunSpec()
    slo: dict[Name, SloSpec] = Field(
        default={}, description="Service-level objectives: name, or class of users -> limits."
    )
    dollars_per_hour: dict[Name, Price] = Field(
        default={},
        description="Machine type -> price of one machine. Default: the price of its GPUs in the "
        "catalogue (`helixsim gpus`), an order of magnitude; without any price for one type of the "
        "cluster, there are no costs.",
    )
    watts: dict[Name, Watts] = Field(
        default={},
        description="Machine type -> power of one machine. Default: the power limits of its GPUs.",
    )
