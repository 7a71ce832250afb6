"""Fields of OpenAI's and vLLM's API that have no effect here, or are refused.

A field that would change the answer is never ignored: where it is not supported, any value but its
default is an error that names the field. An unknown field is an error, too, as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helixreal.serving.errors import ApiError

HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",  # without tools it has no meaning
        "return_token_ids",  # answers have them in any case
        "request_id",
        "include_reasoning",  # there is no separate reasoning
        "early_stopping",  # of a beam search
    }
)
"""Fields that do not change an answer: any value is accepted."""

_OF_TOOLS = ("tools", "tool_choice", "functions", "function_call")

ONLY_DEFAULT: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "spaces_between_special_tokens": (True,),
    "prompt_embeds": (),
    "priority": (0,),
    "cache_salt": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "return_tokens_as_token_ids": (False,),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "continue_final_message": (False,),
}
"""Field -> its default values, the only ones that are accepted. `null` is always accepted."""


def check_others(others: Mapping[str, Any]) -> None:
    """Check the fields of a body that its model does not declare.

    Raises
    ------
    ApiError
        If one is unknown, or has a value that is not supported.
    """
    for name, value in others.items():
        if name in HARMLESS:
            continue
        if name not in ONLY_DEFAULT:
            raise ApiError(400, f"there is no field '{name}' in this request", param=name)
        if value not in ONLY_DEFAULT[name]:
            raise ApiError(400, _refusal(name), param=name)


def _refusal(name: str) -> str:
    only = " or ".join(["null", *map(repr, ONLY_DEFAULT[name])])
    why = ": tools are not supported" if name in _OF_TOOLS else ""
    return f"{name} must be {only}{why}"
