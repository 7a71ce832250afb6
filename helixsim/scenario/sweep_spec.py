"""The keys of a sweep file: a scenario, values to try in it, and seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.scenario.keys import FileName
from helixsim.yaml_files import FileModel, located_error

ScenarioPath = Annotated[str, Field(pattern=r"^[^.\s=]+(\.[^.\s=]+)*$", max_length=1024)]
"""Keys and numbers joined with dots, as ``--set`` takes them."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
_SEED = "run.seed"


def _seeds_shape(value: object) -> str:
    return "<count>" if isinstance(value, int) else "<seeds>"


class SweepSpec(FileModel):
    """A sweep file."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["sweep"]
    description: str = ""
    scenario: FileName = Field(
        description="Name of a shipped scenario, or a file, relative to the folder of this one."
    )
    fixed: dict[ScenarioPath, Any] = Field(
        default={}, alias="set", description="Values to set in all runs: path -> value."
    )
    grid: dict[ScenarioPath, _Values] = Field(
        default={},
        description="Path -> values to try; all combinations are run, the last path "
        "changing fastest.",
    )
    combinations: (
        Annotated[tuple[dict[ScenarioPath, Any], ...], Field(strict=False, min_length=1)] | None
    ) = Field(
        default=None,
        alias="list",
        description="Instead of a grid: a list of combinations, each path -> value.",
    )
    seeds: (
        Annotated[
            Annotated[int, Field(ge=1, le=100_000), Tag("<count>")]
            | Annotated[tuple[Seed, ...], Field(strict=False, min_length=1), Tag("<seeds>")],
            Discriminator(_seeds_shape),
        ]
        | None
    ) = Field(
        default=None,
        description="Seeds of each combination; a number n means the seeds 0 to n - 1. "
        "Default: the scenario's seed.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grid and self.combinations is not None:
            raise located_error("list", "conflicts with the grid; give one of the two")
        for key, mapping in (
            ("set", self.fixed),
            ("grid", self.grid),
            *((f"list[{i}]", one) for i, one in enumerate(self.combinations or ())),
        ):
            if _SEED in mapping:
                raise located_error(f"{key}.{_SEED}", "cannot be set here; use seeds")
        if isinstance(self.seeds, tuple) and len(set(self.seeds)) < len(self.seeds):
            raise located_error("seeds", "duplicate seed")
        return self

    def seed_numbers(self, own: int) -> tuple[int, ...]:
        """The seeds; `own` is the scenario's seed."""
        if self.seeds is None:
            return (own,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
