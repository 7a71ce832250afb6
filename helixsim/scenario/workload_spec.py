"""The keys of the section `workload` of a scenario."""

from __future__ import annotations

from math import fsum
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.profiles.spec import Count, Name
from helixsim.scenario.distribution_spec import Numbers, TimesEntry
from helixsim.scenario.files import CONSTANT, POISSON
from helixsim.scenario.keys import Duration, ExtensionName, FileName, Share
from helixsim.scenario.rate_spec import RateEntry
from helixsim.scenario.trace_spec import TraceEntry, TraceSpec
from helixsim.scenario.workload_values import Mode
from helixsim.traces.arrivals import SLOT_S
from helixsim.yaml_files import FileModel, Seconds, located_error

DEFAULT_LENGTHS = "azure-conversation"
DEFAULT_ARRIVALS = "azure-conversation"
_NOT_WITH_TRACE = (
    "lengths",
    "prompt_tokens",
    "output_tokens",
    "arrivals",
    "requests_per_s",
    "mean_tokens_per_s",
    "classes",
    "conversations",
)
_SHARE_TOLERANCE = 1e-6
MAX_TURNS = 1000


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

    turns: Numbers = Field(
        description="Turns of each conversation, 1,000 at most. The prompt of a turn is the whole "
        "conversation so far and a new prompt; the lengths of prompts are of the new prompt."
    )
    think_time: TimesEntry = Field(
        default=20.0, description="Time from the last token of an answer to the next turn."
    )
    system_prompt_tokens: Count | None = Field(
        default=None,
        description="Tokens that stand before the first prompt, the same in all conversations, so "
        "that [prefix caches](traces.md#shared-prefixes) find them.",
    )


class ClassSpec(FileModel):
    """A class of users, whose requests are alike."""

    share: Share | None = Field(
        default=None, description="Share of all requests; the shares of all classes add up to 1."
    )
    requests_per_s: RateEntry | None = Field(
        default=None, description="Online: rate of its requests, instead of a share of all."
    )
    prompt_tokens: Numbers | None = Field(
        default=None, description="Lengths of prompts; if not given, as in `workload`."
    )
    output_tokens: Numbers | None = Field(
        default=None, description="Lengths of answers; if not given, as in `workload`."
    )
    conversations: ConversationsSpec | None = Field(
        default=None, description="Online: its conversations; if not given, as in `workload`."
    )
    shared_prefix: SharedPrefixSpec | None = Field(
        default=None,
        description="What its prompts begin with, in texts of its own; if not given, as in "
        "`workload`.",
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=0,
        description="Requests with a lower number go first, where a node schedules by priority.",
    )
    region: Name | None = Field(default=None, description="Region of the users.")


class WorkloadSpec(FileModel):
    """The requests of users and their arrivals."""

    mode: Mode | None = Field(
        default=None,
        description="`offline`: a closed loop; the end of a request triggers another. `online`: "
        "an open loop; requests arrive at given times. Default: `online` if a rate or a trace is "
        "given; otherwise the key is required.",
    )
    initial_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=20, description="Offline: number of requests that start the closed loop."
    )
    spacing: Seconds = Field(
        default=0.1,
        description="Offline: time between two of the initial requests, and between the end of a "
        "request and the next arrival.",
    )
    requests_per_s: RateEntry | None = Field(
        default=None,
        description="Online: requests per second, a number or a [rate that varies](workload.md).",
    )
    mean_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="Online: prompt and output tokens per second, instead of `requests_per_s`.",
    )
    arrivals: ArrivalsEntry | None = Field(
        default=None,
        description="Online: `poisson`, `constant` (equal gaps), gamma, a built-in pattern, or a "
        "file of counts in slots of 3 s. Default without a trace: `poisson` with `requests_per_s`, "
        f"`{DEFAULT_ARRIVALS}` with `mean_tokens_per_s`.",
    )
    prompt_tokens: Numbers | None = Field(
        default=None,
        description="Lengths of prompts: a number, or a [distribution](workload.md#lengths).",
    )
    output_tokens: Numbers | None = Field(
        default=None,
        description="Lengths of answers: a number, or a [distribution](workload.md#lengths).",
    )
    lengths: FileName | None = Field(
        default=None,
        description="Lengths of requests, instead of the two keys above: a built-in name or a "
        f"file; {DEFAULT_LENGTHS} if neither these nor a trace is given.",
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
    classes: dict[Name, ClassSpec] = Field(
        default={}, description="Without a trace: name → class of users."
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
        default=1.0,
        description="Online: factor on the arrival rate of a trace, or on `requests_per_s`.",
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
    mean_prompt_tokens: Count | None = Field(
        default=None,
        description="Prompt tokens of the mean request, for the throughput estimate. Default: the "
        f"[mean of the lengths](workload.md#mean-request); 750 with `{DEFAULT_LENGTHS}`.",
    )
    mean_output_tokens: Count | None = Field(
        default=None,
        description="Output tokens of the mean request, for the throughput estimate. Default: the "
        f"[mean of the lengths](workload.md#mean-request); 240 with `{DEFAULT_LENGTHS}`.",
    )

    @property
    def is_online(self) -> bool:
        """Whether requests arrive at times of their own."""
        return self.mode == "online" or self.mode is None

    @property
    def has_class_rates(self) -> bool:
        """Whether the classes have rates of their own, instead of shares."""
        return any(each.requests_per_s is not None for each in self.classes.values())

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trace is not None:
            self._check_trace()
        else:
            if self.trace_format is not None:
                raise located_error("trace_format", "is for a trace; there is none")
            self._check_rate()
            self._check_lengths()
            self._check_classes()
        self._check_conversations()
        if self.tokenizer is not None and self.lengths is None:
            raise located_error("tokenizer", "is for lengths that are texts; there are none")
        return self

    def _check_trace(self) -> None:
        if self.mode == "offline":
            raise located_error(
                "trace",
                "an offline workload is a closed loop without arrival times; set mode to "
                "online, or give the trace as lengths",
            )
        for key in _NOT_WITH_TRACE:
            if getattr(self, key):
                raise located_error(key, "conflicts with the trace; give one of the two")
        if isinstance(self.trace, TraceSpec):
            for key, other in (("rate_scale", "scale"), ("trace_format", "format")):
                twice = key in self.model_fields_set and getattr(self.trace, other) is not None
                if twice and getattr(self, key) != getattr(self.trace, other):
                    raise located_error(key, f"contradicts trace.{other}; give one of the two")

    def _check_rate(self) -> None:
        per_s, tokens_per_s = self.requests_per_s, self.mean_tokens_per_s
        given = [key for key in ("requests_per_s", "mean_tokens_per_s") if getattr(self, key)]
        if len(given) > 1:
            raise located_error("mean_tokens_per_s", "conflicts with requests_per_s; give one")
        if self.mode == "offline" and (per_s is not None or self.has_class_rates):
            raise located_error(
                "mode" if per_s is None else "requests_per_s",
                "a closed loop, mode: offline, has no rate; set mode to online, or give no rate",
            )
        if given and self.has_class_rates:
            raise located_error(given[0], "conflicts with the rates of the classes; give shares")
        if not given and not self.has_class_rates and self.mode != "offline":
            if self.mode is None:
                raise located_error(
                    "mode",
                    "this key is missing: `offline` is a closed loop; an online workload has a "
                    "rate, requests_per_s or mean_tokens_per_s, or a trace",
                )
            raise located_error(
                "requests_per_s",
                "this key is missing: an online workload needs it, or mean_tokens_per_s, or a "
                "trace",
            )
        if self.is_online and self.rate_scale != 1 and tokens_per_s is not None:
            raise located_error(
                "rate_scale", "is for a trace or requests_per_s; set mean_tokens_per_s"
            )
        rates = [per_s, *(each.requests_per_s for each in self.classes.values())]
        if not self._has_plain_arrivals and any(isinstance(rate, FileModel) for rate in rates):
            raise located_error(
                "arrivals",
                "vary by themselves; a rate that varies goes with poisson, constant or gamma",
            )

    @property
    def _has_plain_arrivals(self) -> bool:
        """Whether the arrivals are a process at a rate that may vary."""
        kind = self.arrivals
        return kind in (None, POISSON, CONSTANT) or isinstance(kind, GammaArrivalsSpec)

    def _check_lengths(self) -> None:
        own = ("prompt_tokens", "output_tokens")
        for key in own:
            if getattr(self, key) is None:
                continue
            if self.lengths is not None:
                raise located_error("lengths", f"conflicts with {key}; give one of the two")
            if getattr(self, f"max_{key}") is not None:
                raise located_error(f"max_{key}", f"is for `lengths`; give {key} a max")
        holders: dict[str, WorkloadSpec | ClassSpec] = {"": self, **self.classes}
        for name, users in holders.items():
            given = [key for key in own if getattr(users, key) or getattr(self, key)]
            if len(given) == 1 and (name or not self.classes):
                (missing,) = set(own) - set(given)
                where = f"classes.{name}.{missing}" if name else missing
                raise located_error(where, f"this key is missing: {given[0]} goes with it")

    def _check_classes(self) -> None:
        if not self.classes:
            return
        rated = self.has_class_rates
        key, other = ("requests_per_s", "share") if rated else ("share", "requests_per_s")
        for name, users in self.classes.items():
            if getattr(users, key) is None or getattr(users, other) is not None:
                raise located_error(
                    f"classes.{name}.{key}",
                    "each class has a share of all requests, or each has a requests_per_s",
                )
        total = fsum(users.share or 0.0 for users in self.classes.values())
        if not rated and abs(total - 1) > _SHARE_TOLERANCE:
            raise located_error("classes", f"the shares add up to {total:g}; they must to 1")

    def _check_conversations(self) -> None:
        holders: dict[str, WorkloadSpec | ClassSpec] = {"": self, **self.classes}
        for name, holder in holders.items():
            prefix = f"classes.{name}." if name else ""
            talks = holder.conversations
            if talks is None:
                continue
            if self.mode == "offline":
                raise located_error(
                    f"{prefix}conversations", "are for an online workload; this one is offline"
                )
            shared = holder.shared_prefix or self.shared_prefix
            if talks.system_prompt_tokens is not None and shared is not None:
                raise located_error(
                    f"{prefix}conversations.system_prompt_tokens",
                    "conflicts with shared_prefix; give one of the two",
                )
