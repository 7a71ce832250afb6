"""Request bodies: the supported fields of OpenAI's and vLLM's API."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from helixreal.engines.engine import MAX_LOGPROBS

MAX_PROMPTS = 128
MAX_CHOICES = 128
MAX_TOKEN_ID = 2**31 - 1
_TEXT_PARTS = {"text": "text", "input_text": "text", "refusal": "refusal"}
"""Type of a part of a message -> its key with the text."""

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Flag = Annotated[bool, Field(strict=True)]
NumTokens = Annotated[int, Field(ge=1, le=10**6)]
NumAlternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Prompt = str | list[int]

_TOKEN_IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


def _all_prompts(value: object) -> list[Prompt]:
    """The prompts of a request: one or several, as texts or token ids."""
    if isinstance(value, str) or _is_token_ids(value):
        return [value]  # type: ignore[list-item] # mypy does not see what was checked
    if isinstance(value, list) and 1 <= len(value) <= MAX_PROMPTS:
        if all(isinstance(each, str) for each in value):
            return value
        if all(map(_is_token_ids, value)):
            return value
    raise ValueError(
        f"should be text, token ids (0 to {MAX_TOKEN_ID}, at least one), or a list of 1 to "
        f"{MAX_PROMPTS} of these"
    )


def _is_token_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(each) is int and 0 <= each <= MAX_TOKEN_ID for each in value)
    )


def _text_of_parts(value: object) -> object:
    """The content of a message as one text; its parts are joined by line breaks, as in vLLM."""
    if not isinstance(value, list):
        return value
    return "\n".join(_text_of_part(index, part) for index, part in enumerate(value))


def _text_of_part(index: int, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise ValueError(f"part {index} has type {kind!r}; only 'text' is supported")
    assert isinstance(part, dict)
    if isinstance(text := part.get(_TEXT_PARTS[kind]), str):
        return text
    raise ValueError(f"part {index} has no text")


class Body(BaseModel):
    """A request body. An explicit null for a field means its default."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @property
    def others(self) -> dict[str, Any]:
        """Fields that the model does not declare."""
        return self.model_extra or {}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None
    include_obfuscation: Flag | None = None  # OpenAI's padding against eavesdroppers; no effect


class ResponseFormat(BaseModel):
    """The format of an answer: text, a JSON object, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class StructuredOutputs(BaseModel):
    """What an answer follows: one of a JSON schema, a regular expression, texts, a Lark grammar."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    json_value: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: Flag | None = None


class AnswerFields(Body):
    """Fields of completions and chat completions."""

    max_tokens: Annotated[int, Field(ge=0, le=10**6)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=10**6)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] = Field(default_factory=dict)
    min_tokens: Annotated[int, Field(ge=0, le=10**6)] = 0
    prompt_logprobs: NumAlternatives | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    include_stop_str_in_output: Flag = False
    ignore_eos: Flag = False
    skip_special_tokens: Flag = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=10**6)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings, without empty ones."""
        found = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        return [text for text in found if text]

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Number of alternatives with log probabilities for each token; None for none at all."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the tokens of the prompt."""
        return self.prompt_logprobs

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every event of a stream has the numbers of tokens."""
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)


class CompletionRequest(AnswerFields):
    """``POST /v1/completions``."""

    prompt: Annotated[list[Prompt], BeforeValidator(_all_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    echo: Flag = False
    add_special_tokens: Flag = True
    logprobs: NumAlternatives | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives with log probabilities for each token; None for none at all."""
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the tokens of the prompt, which ``echo`` makes a part of the answer."""
        if not self.echo or self.logprobs is None:
            return self.prompt_logprobs
        return max(self.logprobs, self.prompt_logprobs or 0)


class ChatMessage(BaseModel):
    """A message of a conversation; further fields reach the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: Annotated[
        str | None, BeforeValidator(_text_of_parts), WithJsonSchema(_CONTENT_SCHEMA)
    ] = None

    @property
    def fields(self) -> dict[str, Any]:
        """The message as the chat template sees it."""
        return self.model_dump()


class Conversation(Body):
    """Fields that make the prompt of a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    add_generation_prompt: Flag = True
    add_special_tokens: Flag | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_reserved_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted({"messages", "add_generation_prompt"} & set(value))
        if reserved:
            raise ValueError(f"may not set '{reserved[0]}'")
        return value


class ChatRequest(AnswerFields, Conversation):
    """``POST /v1/chat/completions``."""

    max_completion_tokens: NumTokens | None = None
    logprobs: Flag = False
    top_logprobs: NumAlternatives | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return value

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives with log probabilities for each token; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeRequest(Conversation):
    """``POST /tokenize`` of a text or a conversation."""

    messages: list[ChatMessage] = Field(default_factory=list)
    prompt: str | None = None
    add_special_tokens: Flag | None = None
    return_token_strs: Flag = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    """``POST /detokenize``."""

    tokens: list[TokenId]


def messages_of(conversation: Conversation) -> Sequence[dict[str, Any]]:
    """The messages as the chat template sees them."""
    return [message.fields for message in conversation.messages]
