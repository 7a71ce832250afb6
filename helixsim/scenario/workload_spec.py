"""The keys of the section `workload` of a scenario."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.profiles.spec import Count
from helixsim.scenario.keys import Duration, ExtensionName, FileName
from helixsim.scenario.trace_spec import TraceEntry, TraceSpec
from helixsim.scenario.workload_values import Mode
from helixsim.traces.arrivals import SLOT_S
from helixsim.yaml_files import FileModel, Seconds, located_error

DEFAULT_LENGTHS = "azure-conversation"
DEFAULT_ARRIVALS = "azure-conversation"


class GammaSpec(FileModel):
    """Gamma-distributed gaps between arrivals."""

    cv: Annotated[float, Field(ge=0.01, le=20)] = Field(
        description="Standard deviation of the gaps over their mean: 1 is Poisson, more is bursty."
    )


class GammaArrivalsSpec(FileModel):
    """Arrivals with gamma-distributed gaps."""

    gamma: GammaSpec


class SlotsSpec(FileModel):
    """A file that counts arrivals in slots of time."""

    file: FileName
    length: Duration = SLOT_S


class SlotArrivalsSpec(FileModel):
    """Arrivals by counts in slots of time."""

    slots: SlotsSpec


def _arrivals_shape(value: object) -> str:
    if isinstance(value, str):
        return "<name>"
    slots = "slots" in value if isinstance(value, dict) else isinstance(value, SlotArrivalsSpec)
    return "<slots>" if slots else "<gamma>"


ArrivalsEntry = Annotated[
    Annotated[FileName, Tag("<name>")]
    | Annotated[GammaArrivalsSpec, Tag("<gamma>")]
    | Annotated[SlotArrivalsSpec, Tag("<slots>")],
    Discriminator(_arrivals_shape),
]


class SharedPrefixSpec(FileModel):
    """Prompts begin with one of several texts."""

    tokens: Count = Field(
        description="Length of each text. It is part of the prompt, whose length stays the same; a "
        "shorter prompt is the beginning of a text."
    )
    prompts: Count = Field(description="Number of texts; each is equally likely.")


class ConversationsSpec(FileModel):
    """Requests are turns of conversations."""

    turns: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="Turns of each conversation. The prompt of a turn is the whole conversation so "
        "far and a new prompt; `lengths` are of the new prompt and of the answer."
    )
    think_time: Seconds = Field(
        default=20.0, description="Time from the last token of an answer to the next turn."
    )


class WorkloadSpec(FileModel):
    """The requests of users and their arrivals."""

    mode: Mode
    initial_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=20, description="Offline: number of requests that start the closed loop."
    )
    spacing: Seconds = Field(
        default=0.1,
        description="Offline: time between two of the initial requests, and between the end of a "
        "request and the next arrival.",
    )
    lengths: FileName | None = Field(
        default=None,
        description=f"Lengths of requests: a built-in name or a file; {DEFAULT_LENGTHS} if "
        "neither this nor a trace is given.",
    )
    tokenizer: FileName | None = Field(
        default=None,
        description="Counts the tokens of `lengths` that are texts ([ShareGPT]"
        "(traces.md#conversations-of-sharegpt)): a `tokenizer.json`, or the name of a model in the "
        "local cache of Hugging Face. If not given, a token is 4 characters.",
    )
    max_prompt_tokens: Count | None = Field(
        default=None, description="Requests with longer prompts are excluded."
    )
    max_output_tokens: Count | None = Field(
        default=None, description="Requests with longer answers are excluded."
    )
    arrivals: ArrivalsEntry | None = Field(
        default=None,
        description="Online: poisson, gamma, a built-in pattern, or a file of counts in slots of "
        f"3 s; {DEFAULT_ARRIVALS} if neither this nor a trace is given.",
    )
    mean_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="Online: requested prompt and output tokens per second."
    )
    trace: TraceEntry | None = Field(
        default=None, description="Online: a file of requests with arrival times."
    )
    trace_format: ExtensionName | None = Field(
        default=None,
        description="[Format](traces.md#file-formats) of the trace, or one of your own "
        "([recipes](recipes.md)). If not given, its columns tell.",
    )
    rate_scale: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="Online: factor on the arrival rate of a trace."
    )
    shared_prefix: SharedPrefixSpec | None = Field(
        default=None,
        description="What prompts begin with, for [prefix caches](traces.md#shared-prefixes); for "
        "the requests of a trace, where its columns do not tell it.",
    )
    conversations: ConversationsSpec | None = Field(
        default=None,
        description="Online, without a trace: conversations instead of single requests. "
        "`arrivals` are the arrivals of first turns.",
    )
    mean_prompt_tokens: Count = Field(
        default=750, description="Prompt tokens of the mean request, for the throughput estimate."
    )
    mean_output_tokens: Count = Field(
        default=240, description="Output tokens of the mean request, for the throughput estimate."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trace is not None:
            self._check_trace()
        elif self.mode == "online":
            if self.mean_tokens_per_s is None:
                raise located_error(
                    "mean_tokens_per_s",
                    "this key is missing: an online workload needs it, or a trace",
                )
            if self.rate_scale != 1:
                raise located_error(
                    "rate_scale", "is for a trace; set mean_tokens_per_s for other arrivals"
                )
        if self.conversations is not None and self.mode == "offline":
            raise located_error("conversations", "are for an online workload; this one is offline")
        if self.tokenizer is not None and self.lengths is None:
            raise located_error("tokenizer", "is for lengths that are texts; there are none")
        if self.trace is None and self.trace_format is not None:
            raise located_error("trace_format", "is for a trace; there is none")
        return self

    def _check_trace(self) -> None:
        if self.mode == "offline":
            raise located_error(
                "trace",
                "an offline workload is a closed loop without arrival times; set mode to "
                "online, or give the trace as lengths",
            )
        for key in ("lengths", "arrivals", "mean_tokens_per_s", "conversations"):
            if getattr(self, key) is not None:
                raise located_error(key, "conflicts with the trace; give one of the two")
        if isinstance(self.trace, TraceSpec):
            for key, other in (("rate_scale", "scale"), ("trace_format", "format")):
                twice = key in self.model_fields_set and getattr(self.trace, other) is not None
                if twice and getattr(self, key) != getattr(self.trace, other):
                    raise located_error(key, f"contradicts trace.{other}; give one of the two")
